"""Import every module of keyglue and match two photographs; run with an interpreter that has the core only.

``make minimal`` runs it in an environment without extras, test_imports.py with the optional libraries blocked.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

ASSETS = Path(__file__).parent.parent.parent / "assets"
OPTIONAL = (
    "cv2",
    "fastapi",
    "h5py",
    "kornia",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pillow_heif",
    "poselib",
    "pycolmap",
    "ray",
    "scipy",
    "tensorboard",
    "torchvision",
    "transformers",
    "uvicorn",
)


class _Blocked(MetaPathFinder):
    """Makes the optional libraries look as if they were not installed."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def import_every_module() -> list[str]:
    """Import every module below keyglue and return their names."""
    import keyglue

    names = [found.name for found in pkgutil.walk_packages(keyglue.__path__, "keyglue.")]
    for name in names:
        importlib.import_module(name)
    return names


def match_two_photographs() -> int:
    """Match the bundled stereo pair with the bundled model and return the number of matches."""
    import keyglue

    pair = (ASSETS / "motorcycle_left.png", ASSETS / "motorcycle_right.png")
    return len(keyglue.match(*pair, max_keypoints=256))


if __name__ == "__main__":
    sys.meta_path.insert(0, _Blocked())
    sys.stdout.write(f"{len(import_every_module())} modules, {match_two_photographs()} matches\n")
