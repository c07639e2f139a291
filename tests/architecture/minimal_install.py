"""Import every module of keyglue and match two photographs; run with an interpreter that has the core only.

``make minimal`` runs it in an environment without extras, test_imports.py with the optional libraries blocked.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
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


def block_optional_libraries() -> None:
    """Make the optional libraries look as if they were not installed."""
    sys.modules.update(dict.fromkeys(OPTIONAL))  # pyright: ignore[reportArgumentType, reportCallIssue]


def import_every_module() -> list[str]:
    """Import every module below keyglue and return their names."""
    import keyglue

    names = [found.name for found in pkgutil.walk_packages(keyglue.__path__, "keyglue.")]
    names = [name for name in names if not name.endswith(".__main__")]  # those are programs
    for name in names:
        importlib.import_module(name)
    return names


def match_two_photographs() -> int:
    """Match the bundled stereo pair with the bundled model and return the number of matches."""
    import keyglue

    pair = (ASSETS / "motorcycle_left.png", ASSETS / "motorcycle_right.png")
    return len(keyglue.match(*pair, max_keypoints=256))


if __name__ == "__main__":
    block_optional_libraries()
    sys.stdout.write(f"{len(import_every_module())} modules, {match_two_photographs()} matches\n")
