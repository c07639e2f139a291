"""How long keyglue takes: extraction, matching, end to end, batches, easy and hard pairs.

    python benchmarks/latency.py [--only PART ...] [--threads 1] [--rounds 5] [--out NAME]

The first of --sizes is that of matching. PARTS: extract match pairs batch adaptive cold.

Everything is measured in turn. "quick" and "reference" are the automatic path and the reference path of the same model.
The adaptive part takes the bundled model and the pairs in benchmarks/lists, which were written down before anything was
measured (pair_lists.py): easy ones overlap by 60 % or more, hard ones by 20 % or less. Their images lie in --data;
without them the part is left out. "cold" is a process that starts, loads the bundled model, matches two photographs and
ends.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    ASSETS,
    arguments,
    detector,
    machine,
    measure,
    photograph,
    published_size_model,
    report,
    restrict,
    table,
)
from pair_lists import DATA, read_list
from peers import OFF, STEREO, reference
from torch import Tensor

from keyglue import Features, LightGlueForKeypointMatching
from keyglue.base.bundled import DEFAULT_MODEL, WEIGHTS_FOLDER
from keyglue.images.read import read_image
from keyglue.images.resize import resize_image, to_grayscale

LONG_SIDE = 640

PARTS = ("extract", "match", "pairs", "batch", "adaptive", "cold")
THEIR_START = """
import sys, torch
from PIL import Image
from transformers import AutoImageProcessor, LightGlueForKeypointMatching
model = LightGlueForKeypointMatching.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
images = [Image.open(path) for path in sys.argv[2:]]
size = {"height": 500, "width": 741}
inputs = AutoImageProcessor.from_pretrained(sys.argv[1])(images, return_tensors="pt", size=size)
with torch.inference_mode():
    model(**inputs)
"""
Runs = dict[str, Callable[[], Any]]


def both(model: torch.nn.Module, run: Callable[[], Any]) -> Runs:
    """Return the automatic and the reference path of a model."""
    return {"quick": run, "reference": reference(model, run)}


def times(runs: Runs, rounds: int) -> dict[str, dict[str, float]]:
    """Return the summary of each run."""
    return {name: found.summary() for name, found in measure(runs, rounds).items()}


def row(name: str, found: dict[str, dict[str, float]]) -> list[object]:
    """Return a line of a table: CPU and wall of the automatic path, CPU of the reference path, their ratio."""
    quick, slow = found["quick"], found["reference"]
    ratio = slow["median_cpu"] / quick["median_cpu"]
    return [name, quick["median_cpu"], quick["median_wall"], slow["median_cpu"], f"{ratio:.2f}"]


HEADER = ["", "CPU ms", "wall ms", "reference CPU ms", "times quicker"]


def extract(options: Any) -> tuple[str, Any]:
    """Measure the detector on image sizes and numbers of keypoints."""
    data: dict[str, Any] = {}
    for height, width in options.sizes:
        for most in options.points if (height, width) == options.size else options.points[:1]:
            model, image = detector(most), photograph(STEREO[0], (height, width))
            name = f"{height}x{width}, {most} keypoints"
            data[name] = times(both(model, lambda model=model, image=image: model.extract(image)), options.rounds)
    return table(HEADER, [row(name, found) for name, found in data.items()]), data


def described(model: LightGlueForKeypointMatching, size: tuple[int, int]) -> list[Features]:
    """Return the features of the stereo pair."""
    return [model.extract(photograph(name, size)) for name in STEREO]


def match(options: Any) -> tuple[str, Any]:
    """Measure the matcher of the published size, nothing adaptive."""
    data: dict[str, Any] = {}
    for points in options.points:
        model = published_size_model(points, **OFF)
        first, second = described(model, options.size)
        name = f"{len(first)} + {len(second)} points"
        data[name] = times(both(model, lambda m=model, a=first, b=second: m.match(a, b)), options.rounds)
    return table(HEADER, [row(name, found) for name, found in data.items()]), data


def pairs(options: Any) -> tuple[str, Any]:
    """Measure two images to matches, nothing adaptive."""
    data: dict[str, Any] = {}
    images = [photograph(name, options.size) for name in STEREO]
    for points in options.points:
        model = published_size_model(points, **OFF)

        def run(model: LightGlueForKeypointMatching = model) -> object:
            return model.match(*(model.extract(image) for image in images))

        data["{}x{}, {} keypoints".format(*options.size, points)] = times(both(model, run), options.rounds)
    return table(HEADER, [row(name, found) for name, found in data.items()]), data


def batch(options: Any) -> tuple[str, Any]:
    """Measure batches of pairs of different numbers of keypoints, matched in one call, per pair."""
    data: dict[str, Any] = {}
    model = published_size_model(options.points[0], **OFF)
    first, second = described(model, options.size)
    for size in options.batches:
        kept = torch.linspace(0.3, 1, size).tolist()
        chosen = [tuple(f.select(torch.arange(int(share * len(f)))) for f in (first, second)) for share in kept]
        found = times(both(model, lambda chosen=chosen: model.match_pairs(chosen)), options.rounds)
        data[f"{size}"] = {
            name: {key: round(value / size, 1) for key, value in values.items()} for name, values in found.items()
        }
    header = ["pairs in a batch", *HEADER[1:]]
    return table(header, [row(name, found) for name, found in data.items()]), data


def adaptive(options: Any) -> tuple[str, Any]:
    """Measure the bundled model on the easy and the hard pairs of benchmarks/lists, adaptive and not."""
    most = options.points[min(1, len(options.points) - 1)]
    model, fixed = (LightGlueForKeypointMatching.from_pretrained(**settings) for settings in ({}, OFF))
    model.keypoint_detector.config = model.keypoint_detector.config.replace(max_keypoints=most)
    features = functools.cache(lambda name: model.extract(_with_long_side(options.data / name, LONG_SIDE)))
    header = [
        "pairs",
        "CPU ms a pair, adaptive",
        "all layers, all points",
        "times quicker",
        "layers used",
        "points kept",
    ]
    data: dict[str, Any] = {}
    rows: list[list[object]] = []
    for name in ("easy", "hard"):
        chosen = [(features(first), features(second)) for first, second, _ in read_list(name)]
        on, off = per_pair(model, fixed, chosen, options.rounds)
        answers = [model.match(*pair) for pair in chosen]
        layers = [answer.stop_layer for answer in answers]
        kept = [
            sum(answer.tokens_per_layer) / (len(a) + len(b)) / answer.stop_layer
            for answer, (a, b) in zip(answers, chosen, strict=True)
        ]
        means = [statistics.mean(values) for values in (on, off, layers, kept)]
        rows.append(
            [
                f"{name} ({len(chosen)})",
                f"{means[0]:.1f}",
                f"{means[1]:.1f}",
                f"{means[1] / means[0]:.2f}",
                f"{means[2]:.2f}",
                f"{100 * means[3]:.0f} %",
            ]
        )
        data[name] = {"adaptive": on, "fixed": off, "layers": layers, "kept": kept}
    return table(header, rows), data


def per_pair(
    model: LightGlueForKeypointMatching,
    fixed: LightGlueForKeypointMatching,
    pairs: Sequence[tuple[Features, Features]],
    rounds: int,
) -> tuple[list[float], list[float]]:
    """Return the median CPU milliseconds of each pair in both models, which take turns at every pair."""
    spent: list[tuple[float, float]] = []
    for pair in pairs:
        found = measure({"on": lambda p=pair: model.match(*p), "off": lambda p=pair: fixed.match(*p)}, rounds)
        spent.append((statistics.median(found["on"].cpu), statistics.median(found["off"].cpu)))
    return [on for on, _ in spent], [off for _, off in spent]


def _with_long_side(path: Path, side: int) -> Tensor:
    """Return a photograph as gray (1, h, w) from 0 to 1, shrunk to a long side of so many pixels if it is larger."""
    pixels = read_image(path)
    factor = min(1.0, side / max(pixels.shape[1:]))
    return to_grayscale(resize_image(pixels, (round(factor * pixels.shape[1]), round(factor * pixels.shape[2])))) / 255


def cold(options: Any) -> tuple[str, Any]:
    """Measure processes from start to end: torch's import alone, keyglue, and transformers on the same pixels."""
    paths = [str(ASSETS / name) for name in STEREO]
    commands = {
        "import torch": ["-c", "import torch"],
        "keyglue match": ["-m", "keyglue", "match", *paths],
        "transformers": ["-c", THEIR_START, str(WEIGHTS_FOLDER / DEFAULT_MODEL), *paths],
    }
    if importlib.util.find_spec("transformers") is None:
        del commands["transformers"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    data: dict[str, Any] = {name: {"cpu": [], "wall": []} for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            began, before = time.perf_counter(), _children()
            subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
            data[name]["cpu"].append(_children() - before)
            data[name]["wall"].append(time.perf_counter() - began)
    rows = [
        [name, *(f"{statistics.median(found[key]):.2f}" for key in ("cpu", "wall"))] for name, found in data.items()
    ]
    return table(["process", "CPU s", "wall s"], rows), data


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--points", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--sizes", nargs="+", default=["480x640", "240x320", "768x1024"], help="HEIGHTxWIDTH")
    parser.add_argument("--data", type=Path, default=DATA, help="where the images of benchmarks/lists are")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    options = parser.parse_args()
    restrict(options.isa)
    torch.set_num_threads(options.threads)
    options.sizes = [tuple(int(side) for side in size.split("x")) for size in options.sizes]
    options.size = options.sizes[0]
    if not options.data.is_dir():
        options.only = [part for part in options.only if part != "adaptive"]
    titles = {
        "extract": "Extraction",
        "match": "Matching",
        "pairs": "Two images to matches",
        "batch": "Batches, per pair",
        "adaptive": "Adaptive depth and width",
        "cold": "Cold start",
    }
    functions = {"extract": extract, "match": match, "pairs": pairs, "batch": batch, "adaptive": adaptive, "cold": cold}
    tables: dict[str, str] = {}
    data: dict[str, Any] = {}
    with torch.no_grad():
        for part in options.only:
            tables[titles[part]], data[part] = functions[part](options)
    report("Latency", {**machine(options.threads), "rounds": options.rounds}, tables, data, options.out)


if __name__ == "__main__":
    main()
