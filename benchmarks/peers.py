"""keyglue against transformers, kornia, ONNX Runtime and OpenVINO: the same work, the same weights, in turn.

    python benchmarks/peers.py [--quick] [--work superpoint matcher pair] [--threads 1 2] [--rounds 7] [--out NAME]
    python benchmarks/peers.py --isa avx512      (or avx2: everybody without AMX, float32)

One process runs everybody one after the other in every round. CPU time is the one to compare with one thread, wall time
with two. The detector is the bundled one, keypoints on whole pixels; the matcher has the published size and random
weights; depth and width are not adaptive. Each peer gets what suits it:

- keyglue: as ``from_pretrained`` gives it; "float32" and "reference" are its other ways. "native" is with the kernels
  of keyglue-native, where they are installed and run in that type, the row after it the same without.
- transformers: its default (sdpa, float32), its own post-processing, confidences at which nothing stops or is dropped.
- kornia: its LightGlue (it has no SuperPoint).
- ONNX Runtime, OpenVINO: an export of fixed size with all layers; SuperPoint's suppression and sampling, which are not
  in the export, are keyglue's own quick ones.

With --isa torch (keyglue, transformers, kornia) and OpenVINO are kept to the same instruction set by their environment
variables; ONNX Runtime has no such switch. --quick is the whole table with one image size and three rounds.

"same" is the share of keyglue's reference's keypoints, or matches, that a peer finds as well. Matches are compared by
the keypoints' numbers, which in "pair" are others in transformers: it keeps points at the right and bottom border.
Needs the extra "bench"; who is not installed is left out.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import (
    arguments,
    detector,
    machine,
    measure,
    own_paths,
    photograph,
    published_size_model,
    report,
    restrict,
    table,
    with_isa,
)
from peer_runtimes import Runtime, runtimes
from plain import DenseSuperPoint, PlainMatcher, export
from torch import Tensor

from keyglue import Features, LightGlueForKeypointMatching, SuperPointForKeypointDetection
from keyglue.base.devices import has_fast_bfloat16
from keyglue.images.coordinates import normalize_keypoints
from keyglue.keypoints.nms import find_keypoints
from keyglue.keypoints.sampling import sample_descriptors
from keyglue.matching.lightglue.formats import matcher_to_original

Answer = tuple[Tensor, ...]
Runs = dict[str, Callable[[], Any]]
STEREO = ("motorcycle_left.png", "motorcycle_right.png")
OFF = {"depth_confidence": -1.0, "width_confidence": -1.0}
REFERENCE = "keyglue reference float32"


def reference(model: torch.nn.Module, run: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``run`` on the reference path, which is the one that hooks on the layers take."""

    def watched() -> Any:
        handles = [
            part.register_forward_pre_hook(lambda *_: None) for part in model.modules() if not list(part.children())
        ]
        try:
            return run()
        finally:
            for handle in handles:
                handle.remove()

    return watched


def own(build: Callable[[str | None], Any], run: Callable[[Any], Any]) -> Runs:
    """Return keyglue's ways: automatic, in float32 where that is another one, and the reference path."""
    exact = build("float32")
    runs: Runs = {}
    for dtype in (None, "float32"):
        for name, isa in own_paths(build(dtype).inference_dtype).items():
            # A model each: one that changes its path from call to call would prepare its weights again every time.
            runs[name] = with_isa(isa, functools.partial(run, build(dtype)))
    runs[REFERENCE] = reference(exact, lambda: run(exact))
    return runs


def superpoint_work(size: tuple[int, int], most: int, threads: int, folder: Path) -> Runs:
    """Return who finds and describes the keypoints of one image."""
    image = photograph(STEREO[0], size)
    model = detector(most, "float32")
    runs = own(lambda dtype: detector(most, dtype), lambda own: own.extract(image).keypoints)
    if _installed("transformers"):
        theirs, pixels = their_superpoint(model), image.expand(3, -1, -1)[None]
        scale = torch.tensor([size[1], size[0]])
        runs["transformers float32"] = lambda: theirs(pixels).keypoints[0] * scale
        if has_fast_bfloat16(torch.device("cpu")):
            half = their_superpoint(model).to(torch.bfloat16)
            runs["transformers bfloat16"] = lambda: half(pixels.bfloat16()).keypoints[0].float() * scale
    for name, dense in dense_superpoints(model, image, threads, folder).items():
        runs[name] = lambda dense=dense: finish(model, dense, image).keypoints
    return runs


def dense_superpoints(
    model: SuperPointForKeypointDetection, image: Tensor, threads: int, folder: Path
) -> dict[str, Runtime]:
    """Return the exported dense part of SuperPoint in each runtime."""
    path = folder / f"superpoint-{image.shape[1]}x{image.shape[2]}.onnx"
    if _installed("onnx") and (_installed("onnxruntime") or _installed("openvino")):
        export(DenseSuperPoint(model), (image[None],), path)
        return runtimes(path, threads)
    return {}


def finish(model: SuperPointForKeypointDetection, dense: Runtime, image: Tensor) -> Features:
    """Return Features from the outputs of an exported SuperPoint."""
    scores, descriptor_map = dense(image[None])
    config = model.config
    keypoints, values = find_keypoints(
        scores[0], config.nms_radius, config.keypoint_threshold, config.border_removal_distance, config.max_keypoints
    )
    descriptors = sample_descriptors(keypoints, descriptor_map[0], config.cell)
    size = (image.shape[1], image.shape[2])
    return Features(keypoints=keypoints, descriptors=descriptors, image_size=size, keypoint_scores=values)


def their_superpoint(model: SuperPointForKeypointDetection) -> Any:
    """Return transformers' SuperPoint with a detector's weights."""
    from transformers import SuperPointConfig, SuperPointForKeypointDetection

    theirs = SuperPointForKeypointDetection(SuperPointConfig(**model.config.to_dict())).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    return theirs


def their_lightglue(model: LightGlueForKeypointMatching) -> Any:
    """Return transformers' LightGlue with a model's weights, in which nothing stops or is dropped."""
    from transformers import LightGlueConfig, LightGlueForKeypointMatching

    values = {**model.config.to_dict(), "keypoint_detector_config": model.config.detector.to_dict()}
    # With -1, which should switch both off, it raises; 1 does as well and costs it a few comparisons.
    theirs = LightGlueForKeypointMatching(
        LightGlueConfig(**{**values, "depth_confidence": 1.0, "width_confidence": 1.0})
    ).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    return theirs


def kornia_lightglue(model: LightGlueForKeypointMatching) -> Any:
    """Return kornia's LightGlue with a model's weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kornia.feature import LightGlue
    config = model.config
    sizes = {"descriptor_dim": config.descriptor_dim, "n_layers": config.num_hidden_layers}
    sizes.update(input_dim=config.input_dim, num_heads=config.num_attention_heads)
    theirs = LightGlue(features=None, filter_threshold=config.filter_threshold, **sizes, **OFF).eval()
    matcher = {name: t for name, t in model.state_dict().items() if not name.startswith("keypoint_detector.")}
    theirs.load_state_dict(matcher_to_original(matcher, config.num_attention_heads), strict=False)
    return theirs


def matcher_work(size: tuple[int, int], points: int, threads: int, folder: Path) -> Runs:
    """Return who matches two images of so many keypoints each."""
    model = published_size_model(points, "float32", **OFF)
    first, second = (model.extract(photograph(name, size)) for name in STEREO)
    runs = own(lambda dtype: published_size_model(points, dtype, **OFF), lambda own: own.match(first, second).matches0)
    keypoints = torch.stack([first.keypoints, second.keypoints])[None]
    descriptors = torch.stack([first.descriptors, second.descriptors])[None]
    height, width = first.image_size
    if _installed("transformers"):
        theirs, mask = their_lightglue(model), torch.ones(1, 2, points, dtype=torch.int)
        runs["transformers float32"] = lambda: theirs._match_image_pair(
            keypoints, descriptors, height, width, mask=mask
        )[0][0, 0]
        if has_fast_bfloat16(torch.device("cpu")):
            half, half_descriptors = their_lightglue(model).to(torch.bfloat16), descriptors.bfloat16()
            runs["transformers bfloat16"] = lambda: half._match_image_pair(
                keypoints.bfloat16(), half_descriptors, height, width, mask=mask
            )[0][0, 0]
    if _installed("kornia"):
        kornia, size = kornia_lightglue(model), torch.tensor([[width, height]])
        data = {
            f"image{index}": {
                "keypoints": keypoints[:, index],
                "descriptors": descriptors[:, index],
                "image_size": size,
            }
            for index in (0, 1)
        }
        runs["kornia float32"] = lambda: kornia(data)["matches0"][0]
    inputs = matcher_inputs(first, second)
    for name, session in plain_matchers(model, inputs, threads, folder).items():
        runs[name] = lambda session=session: session(*inputs)[0]
    return runs


def matcher_inputs(first: Features, second: Features) -> tuple[Tensor, Tensor]:
    """Return what the exported matcher takes."""
    positions = [normalize_keypoints(image.keypoints, image.image_size) for image in (first, second)]
    return torch.stack(positions), torch.stack([first.descriptors, second.descriptors])


def plain_matchers(
    model: LightGlueForKeypointMatching, inputs: tuple[Tensor, Tensor], threads: int, folder: Path
) -> dict[str, Runtime]:
    """Return the exported matcher in each runtime."""
    path = folder / f"matcher-{inputs[0].shape[1]}.onnx"
    if _installed("onnx") and (_installed("onnxruntime") or _installed("openvino")):
        export(PlainMatcher(model), inputs, path)
        return runtimes(path, threads)
    return {}


def pair_work(size: tuple[int, int], most: int, threads: int, folder: Path) -> Runs:
    """Return who takes two images to matches."""
    model = published_size_model(most, "float32", **OFF)
    images = [photograph(name, size) for name in STEREO]

    def whole(own: LightGlueForKeypointMatching) -> Tensor:
        return own.match(*(own.extract(image) for image in images)).matches0

    runs = own(lambda dtype: published_size_model(most, dtype, **OFF), whole)
    if _installed("transformers"):
        theirs, pixels = their_lightglue(model), torch.stack(images).expand(-1, 3, -1, -1)[None]
        runs["transformers float32"] = lambda: theirs(pixels).matches[0, 0]
    described = [model.extract(image) for image in images]
    if any(len(image) != most for image in described):
        return runs  # the exported matcher has a fixed size
    matchers = plain_matchers(model, matcher_inputs(*described), threads, folder)
    for name, dense in dense_superpoints(model.keypoint_detector, images[0], threads, folder).items():

        def run(dense: Runtime = dense, matcher: Runtime = matchers[name]) -> Tensor:
            found = [finish(model.keypoint_detector, dense, image) for image in images]
            return matcher(*matcher_inputs(*found))[0]

        runs[name] = run
    return runs


def agreement(expected: Tensor, found: Tensor) -> float:
    """Return which share of keypoints (N, 2) lies within half a pixel of one, or of matches (N,) is the same."""
    if expected.ndim == 2:
        exact = "donot_use_mm_for_euclid_dist"
        return float((torch.cdist(expected, found.float(), compute_mode=exact).amin(dim=1) < 0.5).float().mean())
    matched = expected >= 0
    return float((expected == found[: len(expected)])[matched].float().mean())


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def works(options: Any, threads: int, folder: Path) -> Iterator[tuple[str, Runs]]:
    """Yield name and runs of each kind of work that was asked for."""
    sizes = [tuple(int(side) for side in size.split("x")) for size in options.sizes]
    if "superpoint" in options.work:
        for size in sizes:
            name = f"SuperPoint {size[0]}x{size[1]}, {options.keypoints} keypoints"
            yield name, superpoint_work(size, options.keypoints, threads, folder)
    if "matcher" in options.work:
        for points in options.points:
            yield f"matcher, {points} + {points} points", matcher_work(sizes[0], points, threads, folder)
    if "pair" in options.work:
        size = sizes[0]
        name = f"two images {size[0]}x{size[1]} to matches, {options.keypoints} keypoints"
        yield name, pair_work(size, options.keypoints, threads, folder)


def compare(runs: Runs, rounds: int) -> tuple[str, dict[str, dict[str, float]]]:
    """Measure everybody in turn; return a table and its numbers."""
    expected = runs[REFERENCE]()
    same = {peer: agreement(expected, run()) for peer, run in runs.items()}  # warms up as well
    times = {peer: found.summary() for peer, found in measure(runs, rounds, warm_up=0).items()}
    ours = times[next(iter(runs))]
    rows = [
        [
            peer,
            found["median_cpu"],
            f"{found['median_cpu'] / ours['median_cpu']:.2f}",
            found["min_cpu"],
            found["median_wall"],
            f"{found['median_wall'] / ours['median_wall']:.2f}",
            f"{same[peer]:.3f}",
        ]
        for peer, found in times.items()
    ]
    header = ["", "CPU ms", "times ours", "least CPU ms", "wall ms", "times ours", "same"]
    return table(header, rows), {peer: {**found, "same": same[peer]} for peer, found in times.items()}


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--quick", action="store_true", help="one image size, three rounds")
    parser.add_argument("--work", nargs="+", default=["superpoint", "matcher", "pair"])
    parser.add_argument(
        "--sizes", nargs="+", default=["480x640", "768x1024"], help="HEIGHTxWIDTH; pair takes the first"
    )
    parser.add_argument("--keypoints", type=int, default=1024)
    parser.add_argument("--points", type=int, nargs="+", default=[512, 1024, 2048])
    options = parser.parse_args()
    restrict(options.isa)
    if options.quick:
        options.sizes, options.rounds = options.sizes[:1], min(options.rounds, 3)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    tables: dict[str, str] = {}
    data: dict[str, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for threads in options.threads:
            torch.set_num_threads(threads)
            more = "" if options.threads == [1] else f", {threads} thread{'s' if threads > 1 else ''}"
            # One folder of exported models each: their names would be the same.
            with tempfile.TemporaryDirectory() as folder:
                for name, runs in works(options, threads, Path(folder)):
                    tables[name + more], data[name + more] = compare(runs, options.rounds)
    about = {**machine(" ".join(map(str, options.threads))), "rounds": options.rounds}
    if options.isa:
        about["not restricted"] = "ONNX Runtime"
    report("keyglue and its peers", about, tables, data, options.out)


if __name__ == "__main__":
    main()
