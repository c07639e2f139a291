"""How much memory matching takes above the loaded model: peak resident memory, each measurement in its own process.

    python benchmarks/memory.py [--points 2048 8192] [--layers 9] [--only fast transformers] [--json FILE]

Weights and features are random; nothing stops early and no points are dropped. "native" is the fast path with the
kernels of keyglue-native, if they are installed, "fast" without them, "reference" the path to read, "transformers" its
LightGlue with its default attention. Linux only.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import with_isa

from keyglue import Features, LightGlueConfig, LightGlueForKeypointMatching
from keyglue.base import native
from keyglue.matching.lightglue.fast import ReferencePath

WHO = ("native", "fast", "reference", "transformers")


def random_pair(points: int) -> tuple[Features, Features]:
    """Return features of two images of 640x480."""
    generator = torch.Generator().manual_seed(0)

    def image() -> Features:
        keypoints = torch.rand(points, 2, generator=generator) * torch.tensor([639.0, 479.0])
        descriptors = torch.nn.functional.normalize(torch.randn(points, 256, generator=generator), dim=1)
        return Features(keypoints=keypoints, descriptors=descriptors, image_size=(480, 640))

    return image(), image()


def tied_model(layers: int) -> LightGlueForKeypointMatching:
    """Return a model with random weights and, as in all published ones, the same queries and keys across images."""
    config = LightGlueConfig(num_hidden_layers=layers, depth_confidence=-1, width_confidence=-1)
    model = LightGlueForKeypointMatching(config).eval()
    for layer in model.transformer_layers:
        layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())
    return model


def matcher(who: str, layers: int, pair: tuple[Features, Features]) -> Callable[[], object]:
    """Return what matches the pair."""
    model = tied_model(layers)
    if who in ("native", "fast"):
        return with_isa(None if who == "native" else "off", lambda: model.match(*pair))
    if who == "reference":
        return lambda: model._run([pair], ReferencePath(model))
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        theirs = transformers.LightGlueForKeypointMatching.from_pretrained(folder).eval()
    keypoints = torch.stack([features.keypoints for features in pair])[None]
    descriptors = torch.stack([features.descriptors for features in pair])[None]
    mask = torch.ones(1, 2, len(pair[0]), dtype=torch.int)
    return lambda: theirs._match_image_pair(keypoints, descriptors, 480, 640, mask=mask)


def resident(name: str) -> float:
    """Return "VmRSS" (now) or "VmHWM" (the most so far) of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


@torch.no_grad()
def peak(who: str, points: int, layers: int) -> float:
    """Return the most memory above the loaded model, in MB, that matching ``points`` with ``points`` takes."""
    match = matcher(who, layers, random_pair(points))
    small = random_pair(16)
    matcher(who, 1, small)()  # libraries load what they need
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    match()
    return resident("VmHWM") - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--layers", type=int, default=9, help="layers; the peak hardly depends on them")
    parser.add_argument("--only", nargs="+", choices=WHO, default=list(WHO))
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--one", nargs=2, metavar=("WHO", "POINTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        print(peak(arguments.one[0], int(arguments.one[1]), arguments.layers))  # noqa: T201
        return
    results: dict[str, dict[str, float]] = {}
    for points in arguments.points:
        for who in arguments.only:
            if who == "native" and native.kernels(tied_model(1).inference_dtype) is None:
                continue
            command = [sys.executable, __file__, "--layers", str(arguments.layers), "--one", who, str(points)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            value = float(done.stdout.split()[-1])
            results.setdefault(str(points), {})[who] = round(value)
            print(f"{points:6d} points  {who:12s} {value:8.0f} MB", flush=True)  # noqa: T201
    if arguments.json:
        about = {"layers": arguments.layers, "torch": torch.__version__, "machine": platform.processor()}
        arguments.json.write_text(json.dumps({**about, "MB above the model": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
