"""What is compared: detectors that describe images, and methods that match what a detector found.

Every method sees the same gray images. All nearest-neighbour baselines are mutual; the ratio test holds in both
directions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyglue.base.errors import MissingDependencyError
from keyglue.base.types import Features, Matches
from keyglue.images.resize import resize_image
from keyglue.keypoints.sift import SIFTConfig, SIFTForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.nearest_neighbor import match_nearest
from keyglue.pipelines.matcher import Matcher
from keyglue.pipelines.search import ViewSearch

ModelInput = str | os.PathLike[str] | LightGlueForKeypointMatching | None

REFERENCE_RATIO = 0.9
SIFT_RATIOS = (0.8, 0.85)
ORB_RATIO = 0.8
ONE_VIEW = "one view"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Detector:
    """Something that describes an image.

    Attributes:
        name: Tells it from the other detectors of a table.
        extract: Takes an image (1, h, w), gray, from 0 to 1, and returns its Features in pixels of that image.
        settings: What it was run with, for the report.
    """

    name: str
    extract: Callable[[Tensor], Features]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """Something that matches two described images.

    Attributes:
        name: Tells it from the other methods of a table.
        detector: Describes the images; methods that share it share the features.
        match: Takes the Features of both images.
        settings: What it was run with, for the report.
        views: Matches two images whatever their scales and whichever way up they are, from what the detector found in
            them as they are; None for a method that only looks at that.
        num_layers: Number of layers of an adaptive model; 0 for others.
        is_reference: Its correct matches are those that the other methods on the same keypoints ought to keep.
    """

    name: str
    detector: Detector
    match: Callable[[Features, Features], Matches]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    views: ViewSearch | None = None
    num_layers: int = 0
    is_reference: bool = False


def model_methods(
    model: ModelInput,
    *,
    max_keypoints: int,
    baselines: bool,
    all_layers: bool,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> list[Method]:
    """Return the methods that work on a model's keypoints: the model, and what it is compared with.

    The model comes twice: as ``Matcher.match`` uses it, with other views where the images do not match as they are, and
    with one view only.

    Args:
        model: Name of a bundled model (None for the default), a folder, a Hub id, or a loaded model, which keeps its
            own number of keypoints, device and type.
        max_keypoints: Largest number of keypoints an image.
        baselines: Add mutual nearest neighbours, without and with ratio test.
        all_layers: Add the model with one view, all layers and all keypoints, never stopping early.
        device: Where to compute.
        dtype: Floating point type to compute in.
    """
    if isinstance(model, LightGlueForKeypointMatching):
        loaded, name = model, "model"
    else:
        loaded = Matcher.from_pretrained(model, max_keypoints=max_keypoints, device=device, dtype=dtype).model
        name = "keyglue-small" if model is None else Path(model).name
    loaded.eval()
    found = loaded.keypoint_detector.config
    keypoint_settings = {
        field: getattr(found, field)
        for field in ("max_keypoints", "keypoint_threshold", "nms_radius")
        if hasattr(found, field)
    }
    detector = Detector(
        name=found.model_type,
        extract=lambda image: loaded.extract(image.to(loaded.device)),
        settings={
            "model": name,
            **keypoint_settings,
            "weights": _fingerprint(loaded.keypoint_detector),
            "device": str(loaded.device),
        },
    )
    one_view = _lightglue(f"{name}, {ONE_VIEW}", loaded, detector)
    views = ViewSearch(loaded, resize_image, lambda size: size)
    methods = [dataclasses.replace(one_view, name=name, views=views), one_view]
    if all_layers:
        methods.append(_lightglue(f"{name}, {ONE_VIEW}, all layers", loaded.without_adaptivity(), detector))
    if baselines:
        methods.append(_nearest("mutual nearest", detector, None))
        reference = _nearest(f"mutual nearest, ratio {REFERENCE_RATIO}", detector, REFERENCE_RATIO)
        methods.append(dataclasses.replace(reference, is_reference=True))
    return methods


def classical_methods(max_keypoints: int) -> list[Method]:
    """Return SIFT and ORB with ratio test, as OpenCV has them.

    Args:
        max_keypoints: Largest number of keypoints an image, those of the strongest response.

    Raises:
        MissingDependencyError: OpenCV is not installed.
    """
    config = SIFTConfig(max_keypoints=max_keypoints)
    sift = SIFTForKeypointDetection(config)
    settings = {"contrast_threshold": config.contrast_threshold, "descriptor": "RootSIFT"}
    detector = Detector(name="SIFT", extract=sift.extract, settings={"max_keypoints": max_keypoints, **settings})
    return [*(_nearest(f"SIFT, ratio {ratio}", detector, ratio) for ratio in SIFT_RATIOS), _orb(max_keypoints)]


def _lightglue(name: str, model: LightGlueForKeypointMatching, detector: Detector) -> Method:
    config = model.config
    settings: dict[str, Any] = {
        field: getattr(config, field)
        for field in ("num_hidden_layers", "descriptor_dim", "filter_threshold", "depth_confidence", "width_confidence")
    }
    settings.update(dtype=str(model.dtype).removeprefix("torch."), weights=_fingerprint(model))
    return Method(
        name=name, detector=detector, match=model.match, settings=settings, num_layers=config.num_hidden_layers
    )


def _nearest(name: str, detector: Detector, ratio: float | None) -> Method:
    settings = {"ratio": ratio, "mutual": True, "distance": "cosine"}
    return Method(
        name=name,
        detector=detector,
        match=lambda first, second: match_nearest(first.descriptors, second.descriptors, ratio=ratio),
        settings=settings,
    )


def _orb(max_keypoints: int) -> Method:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError("OpenCV", "opencv", "the baseline ORB") from error
    library: Any = cv2
    orb = library.ORB_create(nfeatures=max_keypoints)

    def extract(image: Tensor) -> Features:
        gray = image[0].mul(255).round().clamp(0, 255).to("cpu", torch.uint8).numpy()
        points, bits = orb.detectAndCompute(np.ascontiguousarray(gray), None)
        codes = np.unpackbits(np.zeros((0, 32), np.uint8) if bits is None else bits, axis=1)
        return Features(
            keypoints=torch.tensor([point.pt for point in points], dtype=torch.float32).reshape(-1, 2),
            descriptors=torch.from_numpy(codes.astype(np.float32)),
            image_size=(gray.shape[0], gray.shape[1]),
            keypoint_scores=torch.tensor([point.response for point in points], dtype=torch.float32),
            detector="orb",
        )

    # The Euclidean distance of two rows of bits is the square root of their Hamming distance.
    nearest = partial(match_nearest, distance="l2", ratio=math.sqrt(ORB_RATIO))
    return Method(
        name=f"ORB, ratio {ORB_RATIO}",
        detector=Detector(name="ORB", extract=extract, settings={"max_keypoints": max_keypoints}),
        match=lambda first, second: nearest(first.descriptors, second.descriptors),
        settings={"ratio": ORB_RATIO, "mutual": True, "distance": "Hamming"},
    )


def _fingerprint(module: torch.nn.Module) -> str:
    """Return twelve digits that tell a model's weights from others'."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
