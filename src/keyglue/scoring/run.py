"""Scoring a model and what it is compared with on a set of pairs."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.base.types import Features, Matches
from keyglue.images.contrast import equalised, lacks_contrast
from keyglue.images.coordinates import resize_keypoints
from keyglue.images.resize import resize_image, resized_size, to_grayscale
from keyglue.multiview.arrays import Array
from keyglue.pipelines.photograph import Photograph
from keyglue.scoring import homography_sets, pose_sets, protocols
from keyglue.scoring.methods import Detector, Method, ModelInput, classical_methods, model_methods
from keyglue.scoring.pairs import HomographyTruth, PairSet, Picture, ScoredPair, Size
from keyglue.scoring.report import ScoreReport, describe_environment
from keyglue.scoring.summary import Record, by_group, summarise_detector, summarise_method
from keyglue.scoring.warps import warps

SETS: dict[str, Callable[[Path], PairSet]] = {
    "oxford_affine": homography_sets.oxford_affine,
    "homogr": homography_sets.homogr,
    "strecha": pose_sets.strecha,
    "hpatches": homography_sets.hpatches,
    "warps": warps,
    "homographies": homography_sets.homographies,
    "poses": pose_sets.poses,
}


def read_set(name: str, data: str | os.PathLike[str]) -> PairSet:
    """Read a set of pairs.

    Args:
        name: One of ``SETS``.
        data: Its folder.

    Raises:
        InputError: The name is unknown, the folder is not there, or its layout is another one.
    """
    if name not in SETS:
        raise InputError(f"unknown set {name!r}. Use one of {', '.join(SETS)}.")
    folder = Path(data)
    if not folder.exists():
        raise InputError(f"{folder} does not exist. Give the folder of the set {name!r}.")
    return SETS[name](folder)


def score(
    dataset: str | PairSet,
    data: str | os.PathLike[str] | None = None,
    *,
    model: ModelInput = None,
    baselines: bool = False,
    all_layers: bool = False,
    methods: Sequence[Method] | None = None,
    max_keypoints: int = 1024,
    resize: int | None = None,
    limit: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    progress: Callable[[Sequence[ScoredPair]], Iterable[ScoredPair]] | None = None,
    command: str | None = None,
) -> ScoreReport:
    """Score a model, and what it is compared with, on a set of image pairs; docs/scoring.md states the protocols.

    Args:
        dataset: Name of a set, as ``read_set`` takes it, or the set itself.
        data: Folder of the set; not needed where ``dataset`` is the set itself.
        model: Name of a bundled model (the default), a folder, a Hub id, or a loaded model with its own settings.
        baselines: Compare with nearest neighbours on the same keypoints, SIFT and ORB, in the same table.
        all_layers: Also run the model with neither early stop nor pruning.
        methods: Score these instead of the model and the baselines.
        max_keypoints: Largest number of keypoints an image, for every method.
        resize: Long side of the images that the methods see, never enlarged; the set's own rule unless told. Errors are
            measured in the set's reference frame all the same.
        limit: Score at most so many pairs, spread evenly over the set.
        device: Where to compute.
        dtype: Floating point type of the model.
        seed: Of the robust estimation.
        progress: Wraps the pairs as they are gone through, such as ``tqdm.tqdm``.
        command: What to note as the command that made the report.

    Raises:
        InputError: A setting is impossible, or the set is not as described.
        ImageError: An image cannot be read.
        MissingDependencyError: The baselines need OpenCV.
    """
    if max_keypoints < 1:
        raise InputError(f"max_keypoints must be at least 1, got {max_keypoints}.")
    if isinstance(dataset, str) and data is None:
        raise InputError(f"give the folder of the set {dataset!r} as data.")
    pairs = dataset if isinstance(dataset, PairSet) else read_set(dataset, data or "")
    if limit is not None:
        pairs = pairs.limited(limit)
    if methods is None:
        options: Any = {"baselines": baselines, "all_layers": all_layers, "device": device, "dtype": dtype}
        methods = model_methods(model, max_keypoints=max_keypoints, **options)
        methods += classical_methods(max_keypoints) if baselines else []
    _require_own_names([method.name for method in methods])
    detectors = list(dict.fromkeys(method.detector for method in methods))
    _require_own_names([detector.name for detector in detectors])
    sight = pairs.reference if resize is None else {"longest_edge": resize}
    estimators = protocols.robust_estimators()
    images = _Images(pairs, detectors, sight)
    queue = pairs.pairs if progress is None else progress(pairs.pairs)
    records = [_score_pair(pair, methods, images, estimators, seed) for pair in queue]
    settings: Record = {"max_keypoints": max_keypoints, "methods_see": sight, "errors_measured_in": pairs.reference}
    settings.update(estimators=estimators, ransac_threshold=protocols.RANSAC_THRESHOLDS[pairs.kind], seed=seed)
    where = next((d.settings["device"] for d in detectors if "device" in d.settings), "cpu")
    return ScoreReport(
        dataset=pairs.name,
        kind=pairs.kind,
        rule=pairs.rule,
        settings=settings,
        methods=[_method_entry(method, records, pairs) for method in methods],
        detectors=[_detector_entry(detector, records, pairs) for detector in detectors],
        pairs=records,
        environment=describe_environment(command or f"keyglue.scoring.score({pairs.name!r}, ...)", torch.device(where)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Described:
    """Features of one image by one detector.

    Attributes:
        features: In the frame that the detector saw.
        keypoints: (N, 2) in the reference frame.
        milliseconds: Time that it took.
    """

    features: Features
    keypoints: Array
    milliseconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """An image with what all detectors found in it; sizes are the file's own and that of the reference frame.

    ``gray`` (1, h, w), from 0 to 1, is what they saw.
    """

    gray: Tensor
    original: Size
    reference: Size
    by_detector: dict[Detector, _Described]


class _Images:
    """Images of a set, each read and described at its first use and dropped after its last."""

    def __init__(self, pairs: PairSet, detectors: list[Detector], sight: dict[str, int]) -> None:
        self.detectors = detectors
        self._reference = pairs.reference
        self._sight = sight
        self._uses = Counter(picture.name for pair in pairs.pairs for picture in (pair.image0, pair.image1))
        self._known: dict[str, _Seen] = {}

    def take(self, picture: Picture) -> _Seen:
        if picture.name not in self._known:
            self._known[picture.name] = self._look(picture)
        found = self._known[picture.name]
        self._uses[picture.name] -= 1
        if self._uses[picture.name] == 0:
            del self._known[picture.name]
        return found

    def _look(self, picture: Picture) -> _Seen:
        pixels = picture.read()
        original = (pixels.shape[1], pixels.shape[2])
        reference, seen = resized_size(original, self._reference), resized_size(original, self._sight)
        gray = to_grayscale(resize_image(pixels, seen)) / 255
        described: dict[Detector, _Described] = {}
        for detector in self.detectors:
            start = time.perf_counter()
            features = detector.extract(gray)
            keypoints = features.keypoints.detach().cpu().double().numpy()  # waits for the device
            milliseconds = 1000 * (time.perf_counter() - start)
            described[detector] = _Described(
                features=features, keypoints=resize_keypoints(keypoints, seen, reference), milliseconds=milliseconds
            )
        return _Seen(gray=gray, original=original, reference=reference, by_detector=described)


def _score_pair(
    pair: ScoredPair, methods: Sequence[Method], images: _Images, estimators: Sequence[str], seed: int
) -> Record:
    first, second = images.take(pair.image0), images.take(pair.image1)
    truth = pair.truth.resized((first.original, first.reference), (second.original, second.reference))
    kind = "homography" if isinstance(truth, HomographyTruth) else "pose"
    detected: Record = {}
    for detector in images.detectors:
        both = [image.by_detector[detector] for image in (first, second)]
        measured: Record = {"keypoints": [len(one.keypoints) for one in both]}
        if isinstance(truth, HomographyTruth):
            sizes = (first.reference, second.reference)
            measured.update(protocols.measure_keypoints(both[0].keypoints, both[1].keypoints, truth, *sizes))
        detected[detector.name] = {**measured, "ms_image": float(np.mean([one.milliseconds for one in both]))}
    matched: dict[str, Record] = {}
    correct: dict[Method, set[tuple[int, int]]] = {}
    indices: dict[Method, NDArray[np.int64]] = {}
    for method in methods:
        start = time.perf_counter()
        found, matches = _match(method, first, second)
        milliseconds = 1000 * (time.perf_counter() - start)
        errors = protocols.match_errors(found, truth)
        indices[method] = found.matches
        correct[method] = set(map(tuple, found.matches[errors < protocols.CORRECT_BELOW[kind]].tolist()))
        matched[method.name] = {
            **protocols.measure_matches(found, errors),
            **protocols.measure_geometry(found, truth, first.reference, estimators, seed),
            **(_adaptivity(matches) if method.num_layers else {}),
            "ms_match": milliseconds,
        }
    for reference in (method for method in methods if method.is_reference):
        for method in methods:
            if method.detector is reference.detector and method.views is None:
                has = correct[reference].intersection(map(tuple, indices[method].tolist()))
                matched[method.name].update(kept=len(has), kept_of=len(correct[reference]))
    sizes = {"sizes": [first.original, second.original], "reference_sizes": [first.reference, second.reference]}
    return {"name": pair.name, "group": pair.group, **sizes, "methods": matched, "detectors": detected}


def _picture(image: _Seen, features: Features) -> Photograph:
    """Return what ``match`` shows the model: an image of little contrast is equalised and described again."""
    if lacks_contrast(255 * image.gray):
        return Photograph.of(equalised(255 * image.gray) / 255)
    return Photograph.of(image.gray, features=features)


def _match(method: Method, first: _Seen, second: _Seen) -> tuple[protocols.Found, Matches]:
    """Match two images; keypoints in the reference frame."""
    both = [image.by_detector[method.detector] for image in (first, second)]
    if method.views is None:
        matches = method.match(both[0].features, both[1].features)
        keypoints = [one.keypoints for one in both]
    else:
        pictures = [_picture(image, one.features) for image, one in zip((first, second), both, strict=True)]
        seen = method.views.run(*pictures)
        matches = seen.matches
        keypoints = [
            resize_keypoints(look.keypoints, picture.size, image.reference)
            for look, picture, image in zip((seen.look0, seen.look1), pictures, (first, second), strict=True)
        ]
    indices = matches.indices
    found = protocols.Found(
        keypoints0=keypoints[0],
        keypoints1=keypoints[1],
        matches=indices.cpu().numpy(),
        scores=matches.matching_scores0[indices[:, 0]].detach().cpu().double().numpy(),
    )
    return found, matches


def _adaptivity(matches: Matches) -> Record:
    """Return the layer at which a pair stopped and the share of keypoints that were dropped before."""
    layers = torch.cat([matches.prune0, matches.prune1])
    dropped = float((layers < matches.stop_layer).double().mean()) if len(layers) else 0.0
    return {"stop_layer": matches.stop_layer, "pruned": dropped}


def _require_own_names(names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names):
        raise InputError(f"methods and their detectors need names of their own, got {list(names)}.")


def _method_entry(method: Method, records: list[Record], pairs: PairSet) -> Record:
    own = [record["methods"][method.name] for record in records]

    def summarise(some: Sequence[Record]) -> Record:
        return summarise_method(some, pairs.kind)

    return {
        "name": method.name,
        "detector": method.detector.name,
        "num_layers": method.num_layers,
        "settings": method.settings,
        "summary": summarise(own),
        "groups": by_group([record["group"] for record in records], own, summarise),
    }


def _detector_entry(detector: Detector, records: list[Record], pairs: PairSet) -> Record:
    own = [record["detectors"][detector.name] for record in records]
    groups = by_group([record["group"] for record in records], own, summarise_detector)
    settings = detector.settings
    return {"name": detector.name, "settings": settings, "summary": summarise_detector(own), "groups": groups}
