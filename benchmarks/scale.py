"""How keyglue holds up when there is a lot of it: retrieval recall, memory, throughput.

    python benchmarks/scale.py retrieval FEATURES MODEL     recall of retrieval against a COLMAP model
    python benchmarks/scale.py photograph                   peak memory for one photograph of 50 megapixels
    python benchmarks/scale.py store --out WORK             peak memory for a store of 100,000 images
    python benchmarks/scale.py throughput FOLDER            all pairs of a folder, against transformers' pipeline

Each prints one JSON object. FEATURES is a store that ``keyglue features`` wrote; memory is the largest resident size of
a process of its own. WORK takes 28 GB, which are deleted at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keyglue.base.bundled import DEFAULT_MODEL, WEIGHTS_FOLDER
from keyglue.base.types import Features
from keyglue.images.read import read_image
from keyglue.images.resize import resize_image
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.choose import PairOptions, choose_pairs, similar_images
from keyglue.reconstruction.colmap import read_model
from keyglue.reconstruction.extract import extract_images, find_images
from keyglue.reconstruction.match import match_images
from keyglue.reconstruction.pairs import exhaustive_pairs, schedule
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.store import FeatureStore, MatchStore

ROOT = Path(__file__).parent.parent
SIZE = {"height": 480, "width": 640}


def most_covisible(model: Path, count: int = 10) -> dict[str, list[str]]:
    """Return for each image of a COLMAP model those that share most points with it, most first."""
    found = read_model(model)
    names = {index: image.name for index, image in found.images.items()}
    shared: dict[str, Counter[str]] = {name: Counter() for name in names.values()}
    for point in found.points3D.values():
        seen = {names[element.image_id] for element in point.track.elements}
        for first, second in itertools.permutations(seen, 2):
            shared[first][second] += 1
    return {name: [other for other, _ in counts.most_common(count)] for name, counts in shared.items()}


def retrieval(features: Path, model: Path, top: int = 20) -> dict[str, Any]:
    """Return how many of each image's ten most covisible ones retrieval has among its best."""
    wanted = most_covisible(model)
    row: dict[str, Any] = {"images": len(wanted), "top": top}
    with FeatureStore(features) as store:
        names = [name for name in store.names() if name in wanted]
        for label, compare in (("vectors", False), ("compared", True)):
            start = time.process_time()
            neighbours = similar_images(store, names, top, compare=compare)
            seconds = time.process_time() - start
            recall = [
                len(set(wanted[name]) & {names[index] for index in found}) / len(wanted[name])
                for name, found in zip(names, neighbours.tolist(), strict=True)
                if wanted[name]
            ]
            row[label] = {
                "recall": round(float(np.mean(recall)), 4),
                "images_under_0.9": int(sum(value < 0.9 for value in recall)),
                "worst": round(float(min(recall)), 2),
                "cpu_seconds": round(seconds, 1),
            }
    return row


def photograph(out: Path, megapixels: float = 50) -> dict[str, Any]:
    """Describe one large photograph at its full size, in tiles; every keypoint is kept."""
    width = round((megapixels * 1e6 * 1.5) ** 0.5)
    pixels = resize_image(read_image(ROOT / "assets" / "motorcycle_left.png"), (round(width / 1.5), width))
    from PIL import Image

    folder = out / "photographs"
    folder.mkdir()
    Image.fromarray(pixels.byte().permute(1, 2, 0).numpy()).save(folder / "large.jpg", quality=92)
    del pixels
    return in_a_process(_photograph, folder, out / "large.h5")


def _photograph(folder: Path, store: Path) -> dict[str, Any]:
    matcher = Matcher.from_pretrained(device="cpu", max_keypoints=-1)
    matcher.processor.do_resize = False
    start = time.perf_counter()
    report = extract_images(folder, ["large.jpg"], store, matcher)
    with FeatureStore(store) as found:
        keypoints, size = len(found.keypoints("large.jpg")), found.record("large.jpg").size
    seconds = time.perf_counter() - start
    return {"size": size, "keypoints": keypoints, "failed": report.failed, "seconds": round(seconds, 1)}


def large_store(out: Path, images: int = 100_000, keypoints: int = 512, dimensions: int = 256) -> dict[str, Any]:
    """Write a store of many images, choose pairs by retrieval and put them in order, each step in its own process."""
    store, pairs = out / "features.h5", out / "pairs.txt"
    return {
        "images": images,
        "keypoints": keypoints,
        "write": in_a_process(_write_store, store, images, keypoints, dimensions),
        "gigabytes": round(store.stat().st_size / 1e9, 2),
        "resume": in_a_process(_resume_store, store),
        "retrieval": in_a_process(_choose, store, pairs),
        "schedule": in_a_process(_schedule, store, pairs),
    }


def _write_store(path: Path, images: int, keypoints: int, dimensions: int) -> dict[str, Any]:
    """Write images of a walk: each keeps most of the points of the one before, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    fresh = keypoints // 16
    many = torch.nn.functional.normalize(torch.randn(16 * keypoints, dimensions, generator=generator), dim=1)
    noise = torch.randn(8, keypoints, dimensions, generator=generator) * 0.3 / dimensions**0.5
    points = many[:keypoints].clone()
    with FeatureStore(path, {"kind": "features"}) as store:
        for index in range(images):
            # New points at new angles: a rotated copy of one of a few thousand.
            place, source = (torch.randint(count, (fresh,), generator=generator) for count in (keypoints, len(many)))
            points[place] = many[source].roll(int(torch.randint(dimensions, (1,), generator=generator)), dims=1)
            features = Features(
                keypoints=torch.rand(keypoints, 2, generator=generator) * 600,
                descriptors=points + noise[index % len(noise)],
                keypoint_scores=torch.rand(keypoints, generator=generator),
                image_size=(640, 640),
                detector="superpoint",
            )
            store.save(f"{index // 1000:03d}/{index:06d}.jpg", features, ImageRecord(size=(640, 640)))
            if index % 1000 == 999:
                say(f"{index + 1} images written in {time.perf_counter() - start:.0f} s")
    return {"seconds": round(time.perf_counter() - start, 1)}


def _resume_store(path: Path) -> dict[str, Any]:
    """Open the store for writing again, as a run that goes on does."""
    start = time.perf_counter()
    with FeatureStore(path, {"kind": "features"}) as store:
        count = len(store.names())
    return {"images": count, "seconds": round(time.perf_counter() - start, 1)}


def _choose(path: Path, output: Path) -> dict[str, Any]:
    start = time.perf_counter()
    with FeatureStore(path) as store:
        names = store.names()

    def progress(stage: str, done: int, total: int) -> None:
        if done % 1000 == 0:
            say(f"{stage} {done} of {total} after {time.perf_counter() - start:.0f} s")

    pairs = choose_pairs(path, names, PairOptions(choice="retrieval", compare=False), output, progress)
    seconds = time.perf_counter() - start
    near = float((np.abs(pairs[:, 0] - pairs[:, 1]) <= 16).mean())
    return {"pairs": len(pairs), "within_16_steps": round(near, 3), "seconds": round(seconds, 1)}


def _schedule(path: Path, output: Path) -> dict[str, Any]:
    """Put the pairs in order for 1 GB of features, and count how often an image is read."""
    from keyglue.reconstruction.pairs import read_pairs

    start = time.perf_counter()
    with FeatureStore(path) as store:
        names = store.names()
        capacity = (1 << 30) // store.memory(names[0])
    ordered = schedule(read_pairs(output, names), len(names), capacity)
    seconds = time.perf_counter() - start
    kept: dict[int, None] = {}
    reads = 0
    for image in ordered.reshape(-1).tolist():
        reads += image not in kept
        kept.pop(image, None)
        kept[image] = None
        if len(kept) > capacity:
            del kept[next(iter(kept))]
    return {"capacity": capacity, "reads_per_image": round(reads / len(names), 2), "seconds": round(seconds, 1)}


def throughput(folder: Path, keypoints: int, rounds: int, out: Path) -> dict[str, Any]:
    """Match all pairs of a folder, image files to matches: keyglue's stages, and transformers pair by pair.

    Both have the same weights, in float32, see images of 480 x 640 and keep the same number of keypoints. keyglue runs
    before and after transformers, so that a machine that is busier at one time than at another shows.
    """
    names = find_images(folder)
    pairs = exhaustive_pairs(len(names))
    matcher = Matcher.from_pretrained(device="cpu", max_keypoints=keypoints, resize=(480, 640))
    matcher.match(folder / names[0], folder / names[1])  # warm
    before = [_stages(folder, names, pairs, matcher, out / f"before{index}") for index in range(rounds)]
    theirs, theirs_cpu, counts = _transformers(folder, [(names[i], names[j]) for i, j in pairs.tolist()], keypoints)
    after = [_stages(folder, names, pairs, matcher, out / f"after{index}") for index in range(rounds)]
    own = {key: float(np.median([one[key] for one in before + after])) for key in before[0]}
    return {
        "pairs": len(pairs),
        "keypoints": keypoints,
        "threads": torch.get_num_threads(),
        "keyglue": {key: round(value, 2) for key, value in own.items()},
        "keyglue_seconds": [round(one["seconds"], 2) for one in before + after],
        "transformers": {"seconds": round(theirs, 2), "cpu_seconds": round(theirs_cpu, 2), "matches": sum(counts)},
        "ratio": round(theirs / own["seconds"], 2),
        "cpu_ratio": round(theirs_cpu / own["cpu_seconds"], 2),
    }


def _stages(folder: Path, names: list[str], pairs: Any, matcher: Matcher, out: Path) -> dict[str, float]:
    """Return the seconds of keyglue's stages and the number of matches."""
    out.mkdir()
    start, cpu = time.perf_counter(), time.process_time()
    extract_images(folder, names, out / "features.h5", matcher)
    described = time.perf_counter()
    match_images(pairs, names, out / "features.h5", out / "matches.h5", matcher)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    with MatchStore(out / "matches.h5") as store:
        matches = sum(len(store.load(names[first], names[second])) for first, second in pairs.tolist())
    say(f"keyglue: {seconds:.1f} s, {cpu_seconds:.1f} s of CPU")
    return {"seconds": seconds, "describe": described - start, "cpu_seconds": cpu_seconds, "matches": matches}


def _transformers(folder: Path, pairs: list[tuple[str, str]], keypoints: int) -> tuple[float, float, list[int]]:
    """Return the wall and CPU seconds of transformers' pipeline, and each pair's number of matches."""
    import transformers

    model_folder = WEIGHTS_FOLDER / DEFAULT_MODEL
    model = transformers.AutoModelForKeypointMatching.from_pretrained(model_folder, dtype=torch.float32).eval()
    model.keypoint_detector.config.max_keypoints = keypoints
    model.keypoint_detector.keypoint_decoder.max_keypoints = keypoints
    processor = transformers.AutoImageProcessor.from_pretrained(model_folder, size=SIZE)
    pipe = transformers.pipeline("keypoint-matching", model=model, image_processor=processor, device="cpu")
    paths = [(str(folder / first), str(folder / second)) for first, second in pairs]
    threshold = model.config.filter_threshold
    pipe(list(paths[0]), threshold=threshold)  # warm
    start, cpu = time.perf_counter(), time.process_time()
    counts = [len(pipe(list(pair), threshold=threshold)) for pair in paths]
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    say(f"transformers: {seconds:.1f} s, {cpu_seconds:.1f} s of CPU")
    return seconds, cpu_seconds, counts


def in_a_process(function: Any, *arguments: Any) -> dict[str, Any]:
    """Run a function of this file in a process of its own; its answer, with the process's CPU time and largest size."""
    words = [str(argument) for argument in arguments]
    command = [sys.executable, __file__, "run", function.__name__, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    say(done.stdout.strip())
    return json.loads(done.stdout)


def _run(name: str, words: list[str]) -> dict[str, Any]:
    values = [int(word) if word.isdigit() else Path(word) for word in words]
    found = globals()[name](*values)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        **found,
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gigabytes": round(used.ru_maxrss * 1024 / 1e9, 3),
    }


def say(text: str) -> None:
    """Print a line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("retrieval")
    verb.add_argument("features", type=Path)
    verb.add_argument("model", type=Path)
    verb.add_argument("--top", type=int, default=20)
    verb = verbs.add_parser("photograph")
    verb.add_argument("--megapixels", type=float, default=50)
    verb = verbs.add_parser("store")
    verb.add_argument("--images", type=int, default=100_000)
    verb.add_argument("--keypoints", type=int, default=512)
    verb.add_argument("--out", type=Path, required=True, help="folder with room; what is made in it is deleted")
    verb = verbs.add_parser("throughput")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--keypoints", type=int, default=1024)
    verb.add_argument("--rounds", type=int, default=2, help="of keyglue before, and again after transformers")
    verb = verbs.add_parser("run")
    verb.add_argument("name")
    verb.add_argument("words", nargs="*")
    args = parser.parse_args()
    if args.verb == "run":
        row = _run(args.name, args.words)
    elif args.verb == "retrieval":
        row = retrieval(args.features, args.model, args.top)
    else:
        out = Path(tempfile.mkdtemp(prefix="scale-", dir=getattr(args, "out", None)))
        try:
            if args.verb == "photograph":
                row = photograph(out, args.megapixels)
            elif args.verb == "store":
                row = large_store(out, args.images, args.keypoints)
            else:
                row = throughput(args.folder, args.keypoints, args.rounds, out)
        finally:
            shutil.rmtree(out)
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main()
