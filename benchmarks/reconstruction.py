"""Reconstruct a scene with keyglue and with COLMAP's own SIFT in one run, and compare them.

    python benchmarks/reconstruction.py FOLDER --out WORK [--truth scene.json] [--pinhole fx,fy,cx,cy]

FOLDER holds the images. Both methods get the same images, one shared camera, exhaustive pairs, the same mapper and
verification. SIFT runs first; it finds more keypoints than it is asked for, where one place has several orientations,
and keyglue then gets as many an image as SIFT found on average. With --sift-default SIFT also runs with COLMAP's own
8192. With --pinhole each is mapped a second time, with the camera known and kept. keyglue is also mapped with the
principal point estimated, and with its keypoints where they were found. Seconds of a stage are those of the first
mapping.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from keyglue.reconstruction.choose import PairOptions
from keyglue.reconstruction.colmap import MapOptions, build_model, read_model, summarize
from keyglue.reconstruction.poses import pose_errors
from keyglue.reconstruction.reconstruct import ReconstructOptions, reconstruct
from keyglue.reconstruction.store import FeatureStore

_OWN_WAYS = {
    "camera unknown, principal point estimated": MapOptions(cameras="single", principal_point=True),
    "camera unknown, not refined": MapOptions(cameras="single", refine=False),
}


class Sift:
    """COLMAP's own pipeline."""

    def __init__(self, images: Path, out: Path, keypoints: int) -> None:
        self.images, self.out, self.keypoints = images, out, keypoints
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)

    def match(self) -> dict[str, float]:
        """Fill the database and return the seconds of each stage."""
        import pycolmap

        pycolmap.logging.minloglevel = 2
        database = self.out / "database.db"
        pycolmap.Database.open(database).close()
        extraction = pycolmap.FeatureExtractionOptions()
        extraction.sift.max_num_features = self.keypoints
        extraction.use_gpu = False
        matching = pycolmap.FeatureMatchingOptions()
        matching.use_gpu = False
        start = time.perf_counter()
        pycolmap.extract_features(
            database, self.images, camera_mode=pycolmap.CameraMode.SINGLE, extraction_options=extraction
        )
        middle = time.perf_counter()
        pycolmap.match_exhaustive(database, matching_options=matching)
        return {"extract": middle - start, "match": time.perf_counter() - middle}

    def mean_keypoints(self) -> int:
        """Return the mean number of keypoints of an image."""
        import pycolmap

        with pycolmap.Database.open(self.out / "database.db") as database:
            return round(database.num_keypoints() / database.num_images())

    def map(self, mapping: MapOptions) -> Any:
        """Return a model."""
        import pycolmap

        if mapping.camera_params is not None:
            with pycolmap.Database.open(self.out / "database.db") as database:
                for camera in database.read_all_cameras():
                    known = pycolmap.Camera.create_from_model_name(
                        camera.camera_id, mapping.camera_model, 1.0, camera.width, camera.height
                    )
                    known.params, known.has_prior_focal_length = mapping.camera_params, True
                    database.update_camera(known)
        build_model(self.out / "database.db", self.images, self.out / "sparse", mapping)
        return read_model(self.out)


class Own:
    """keyglue's pipeline; a second mapping goes on from the stores of the first."""

    def __init__(self, images: Path, out: Path, settings: dict[str, Any]) -> None:
        self.images, self.out, self.settings = images, out, settings
        shutil.rmtree(out, ignore_errors=True)

    def match(self) -> dict[str, float]:
        """Return the seconds of each stage."""
        return reconstruct(self.images, self.out, self.options(MapOptions(cameras="single"))).seconds

    def map(self, mapping: MapOptions) -> Any:
        """Return a model."""
        reconstruct(self.images, self.out, self.options(mapping))
        return read_model(self.out)

    def mean_keypoints(self) -> int:
        """Return the mean number of keypoints of an image."""
        with FeatureStore(self.out / "features.h5") as store:
            names = store.names()
            return round(sum(len(store.keypoints(name)) for name in names) / len(names))

    def options(self, mapping: MapOptions) -> ReconstructOptions:
        """Return the settings with a way of mapping."""
        return ReconstructOptions(**self.settings, pairs=PairOptions(choice="exhaustive"), mapping=mapping)


def read_truth(path: Path) -> dict[str, Any]:
    """Return the poses of a scene.json by the names of the image files."""
    frames = json.loads(path.read_text())["frames"]
    return {Path(f["name"]).name: (np.array(f["R"], dtype=float), np.array(f["t"], dtype=float)) for f in frames}


def main() -> None:
    """Run the comparison and print one JSON object a method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--resize", type=int, default=1280)
    parser.add_argument("--model")
    parser.add_argument("--pinhole", help="known fx,fy,cx,cy of all images; unknown unless given")
    parser.add_argument("--sift-default", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    count = len([path for path in args.images.iterdir() if path.is_file()])
    settings = {"resize": args.resize, "model": args.model}
    mappings = {"camera unknown": MapOptions(cameras="single")}
    if args.pinhole is not None:
        known = tuple(map(float, args.pinhole.split(",")))
        mappings["camera known"] = MapOptions(cameras="single", camera_model="PINHOLE", camera_params=known)
    sift = Sift(args.images, args.out / "sift", args.keypoints)
    methods: dict[str, Any] = {f"COLMAP SIFT {args.keypoints}": sift, "keyglue": None}
    if args.sift_default:
        methods["COLMAP SIFT 8192"] = Sift(args.images, args.out / "sift8192", 8192)
    for name, given in methods.items():
        settings["max_keypoints"] = sift.mean_keypoints() if given is None else 0
        method = given or Own(args.images, args.out / "keyglue", settings)
        seconds = {stage: round(value, 1) for stage, value in method.match().items()}
        wanted = mappings if given is not None else {**mappings, **_OWN_WAYS}
        for camera, mapping in wanted.items():
            model = method.map(mapping)
            row = {
                "method": name,
                "keypoints": method.mean_keypoints(),
                "camera": camera,
                **vars(summarize(model, count)),
                "seconds": seconds,
            }
            if args.truth is not None:
                errors = pose_errors(model, read_truth(args.truth))
                row["rotation_deg"] = _median_and_worst(errors.rotations)
                row["centre_percent"] = _median_and_worst(100 * errors.centres)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


def _median_and_worst(values: Any) -> list[float]:
    return [round(float(np.median(values)), 4), round(float(np.max(values)), 4)]


if __name__ == "__main__":
    main()
