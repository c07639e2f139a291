"""The short interface of the original LightGlue repository (cvg/LightGlue), so that code written for it runs.

Dictionaries go in and out, with a leading batch dimension; image sizes are (width, height). As there, making a model
loads its weights: these classes are thin covers over the package's models.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from keyglue.base.bundled import DEFAULT_MODEL
from keyglue.base.devices import resolve_device
from keyglue.base.errors import InputError
from keyglue.base.outputs import pad_stack
from keyglue.base.types import Features, Matches
from keyglue.images.coordinates import resize_keypoints
from keyglue.images.read import ImageInput, read_image
from keyglue.images.resize import resize_image
from keyglue.keypoints.detector import KeypointDetector
from keyglue.keypoints.sift import SIFTConfig, SIFTForKeypointDetection
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.lightglue.lightglue import LightGlueMatcher

Data = dict[str, Any]


def load_image(path: ImageInput, resize: int | tuple[int, int] | None = None) -> Tensor:
    """Read an image as (3, h, w) from 0 to 1; ``resize`` is an int for the longest edge or (height, width)."""
    image = read_image(path)
    if resize is not None:
        size = resize if isinstance(resize, tuple) else _longest_edge(image, resize)
        image = resize_image(image, size)
    return image.expand(3, -1, -1).contiguous() / 255


def rbd(data: Data) -> Data:
    """Remove the batch dimension of a dictionary of one image or pair."""
    return {key: value[0] if isinstance(value, Tensor | list) else value for key, value in data.items()}


class Extractor(nn.Module):
    """A detector behind the original interface.

    Args:
        detector: Finds and describes keypoints.
        resize: Longest edge that ``extract`` resizes images to; None leaves them.
    """

    def __init__(self, detector: KeypointDetector, resize: int | None) -> None:
        super().__init__()
        self.detector = detector
        self.resize = resize

    def forward(self, data: Data) -> Data:
        """Describe ``data["image"]`` (B, C, h, w) from 0 to 1 as it is.

        Returns:
            keypoints (B, N, 2), keypoint_scores (B, N), descriptors (B, N, D), and scales and oris where there are any.

        Raises:
            InputError: The images of the batch have different numbers of keypoints; pass them one by one.
        """
        image = data["image"]
        sizes = [(image.shape[2], image.shape[3])] * len(image)
        with torch.no_grad():
            found = self.detector.extract_batch(image, sizes)
        counts = {len(features) for features in found}
        if len(counts) > 1:
            raise InputError(
                f"the images of this batch have different numbers of keypoints {counts}; pass them one by one."
            )
        out: Data = {
            "keypoints": torch.stack([f.keypoints for f in found]),
            "descriptors": torch.stack([f.descriptors for f in found]),
        }
        for name, key in (("keypoint_scores", "keypoint_scores"), ("scales", "scales"), ("orientations", "oris")):
            values = [getattr(f, name) for f in found]
            if all(value is not None for value in values):
                out[key] = torch.stack(values)
        return out

    @torch.no_grad()
    def extract(self, img: Tensor, *, resize: int | None = None, **conf: Any) -> Data:
        """Describe one image (C, h, w) or (1, C, h, w), values from 0 to 1; keypoints are in its own pixels.

        Args:
            img: The image.
            resize: Longest edge to resize to, instead of the extractor's own.
            **conf: Refused, so that a setting which would have no effect is not overlooked.
        """
        if conf:
            raise InputError(f"extract has no setting {', '.join(conf)}; it takes resize.")
        batch = img if img.ndim == 4 else img[None]
        if batch.ndim != 4 or len(batch) != 1:
            raise InputError(f"extract takes one image (C, h, w) or (1, C, h, w), got {tuple(img.shape)}.")
        original = (batch.shape[2], batch.shape[3])
        edge = self.resize if resize is None else resize
        target = original if edge is None else _longest_edge(batch[0], edge)
        resized = batch if target == original else (resize_image(batch[0].cpu() * 255, target) / 255)[None]
        data = self({"image": resized.to(img.device)})
        data["keypoints"] = resize_keypoints(data["keypoints"], target, original)
        data["image_size"] = torch.tensor([[original[1], original[0]]], device=img.device, dtype=torch.float32)
        return data


class SuperPoint(Extractor):
    """SuperPoint with keyglue's bundled weights, or others.

    Args:
        max_num_keypoints: Largest number of keypoints; None for all.
        detection_threshold: Score that a keypoint must exceed.
        nms_radius: Suppression radius in pixels.
        remove_borders: Keypoints nearer than this to the edge are left out.
        weights: Name of a model, a folder, a Hub id, or a file such as superpoint_v1.pth.
        resize: Longest edge that ``extract`` resizes images to.
    """

    def __init__(
        self,
        *,
        max_num_keypoints: int | None = None,
        detection_threshold: float = 0.0005,
        nms_radius: int = 4,
        remove_borders: int = 4,
        weights: str | os.PathLike[str] | None = None,
        resize: int | None = 1024,
    ) -> None:
        detector = SuperPointForKeypointDetection.from_pretrained(
            weights,
            max_keypoints=-1 if max_num_keypoints is None else max_num_keypoints,
            keypoint_threshold=detection_threshold,
            nms_radius=nms_radius,
            border_removal_distance=remove_borders,
        )
        super().__init__(detector, resize)
        self.eval()


class SIFT(Extractor):
    """SIFT through OpenCV.

    Args:
        max_num_keypoints: Largest number of keypoints; None for all.
        resize: Longest edge that ``extract`` resizes images to.
        **settings: As for ``SIFTConfig``.
    """

    def __init__(self, *, max_num_keypoints: int | None = None, resize: int | None = 1024, **settings: Any) -> None:
        most = -1 if max_num_keypoints is None else max_num_keypoints
        super().__init__(SIFTForKeypointDetection(SIFTConfig(max_keypoints=most, **settings)), resize)


class LightGlue(nn.Module):
    """The matcher behind the original interface.

    Args:
        features: "superpoint" has bundled weights; any other kind of features needs ``weights``.
        weights: Name of a model, a folder, a Hub id, or a file such as disk_lightglue.pth.
        flash: Accepted; the quickest attention there is gets chosen by itself.
        mp: Run in mixed precision (autocast).
        **conf: ``depth_confidence``, ``width_confidence``, ``filter_threshold``, ... as in ``LightGlueConfig``.
    """

    features: ClassVar[tuple[str, ...]] = ("superpoint", "disk", "aliked", "sift", "doghardnet")

    def __init__(
        self,
        features: str | None = "superpoint",
        *,
        weights: str | os.PathLike[str] | None = None,
        flash: bool = True,
        mp: bool = False,
        **conf: Any,
    ) -> None:
        super().__init__()
        del flash
        if features is not None and features not in self.features:
            raise InputError(f"unknown features {features!r}; known are {', '.join(self.features)}.")
        if weights is None and features not in (None, "superpoint"):
            raise InputError(
                f"no weights for {features!r} come with keyglue; pass weights= with the path of "
                f"{features}_lightglue.pth."
            )
        self.matcher = LightGlueMatcher.from_pretrained(weights or DEFAULT_MODEL, **conf)
        self.mp = mp
        self.eval()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Accept the original's call; nothing needs to be compiled here, and the answers stay the same."""

    def forward(self, data: Data) -> Data:
        """Match the keypoints of ``data["image0"]`` and ``data["image1"]``.

        Args:
            data: For each image a dictionary: keypoints (B, N, 2), descriptors (B, N, D), image_size (B, 2) as (width,
                height) or image (B, C, h, w), and scales and oris (B, N) where the matcher reads them.

        Returns:
            matches0 (B, M) and matches1 (B, N) with -1 for none, matching_scores0 and matching_scores1, matches and
            scores (lists with (S, 2) and (S,) for each pair), prune0 and prune1, and stop, the most layers of any pair.

        Raises:
            InputError: A dictionary lacks something, or shapes do not fit.
        """
        images = [_features_of(data, name) for name in ("image0", "image1")]
        if len(images[0]) != len(images[1]):
            raise InputError(f"image0 holds {len(images[0])} images and image1 {len(images[1])}; they must be pairs.")
        pairs = list(zip(*images, strict=True))
        device = self.matcher.device.type
        with torch.inference_mode(), torch.autocast(device, enabled=self.mp):
            found = self.matcher.match_pairs(pairs)
        return _as_dictionary(found)


def _features_of(data: Data, name: str) -> list[Features]:
    if name not in data:
        raise InputError(f"the data has no {name!r}; give image0 and image1.")
    image: Data = data[name]
    missing = [key for key in ("keypoints", "descriptors") if key not in image]
    if missing or ("image_size" not in image and "image" not in image):
        raise InputError(f"{name} needs keypoints, descriptors, and image_size or image; got {', '.join(image)}.")
    keypoints, descriptors = image["keypoints"], image["descriptors"]
    if keypoints.ndim != 3 or descriptors.ndim != 3:
        raise InputError(f"{name}: keypoints must be (B, N, 2) and descriptors (B, N, D); add the batch dimension.")
    if "image_size" in image:
        sizes = [
            (int(height), int(width)) for width, height in torch.as_tensor(image["image_size"]).reshape(-1, 2).tolist()
        ]
    else:
        sizes = [tuple(image["image"].shape[-2:])]
    sizes = sizes * len(keypoints) if len(sizes) == 1 else sizes
    optional = {"keypoint_scores": "keypoint_scores", "scales": "scales", "orientations": "oris"}
    return [
        Features(
            keypoints=keypoints[index],
            descriptors=descriptors[index],
            image_size=sizes[index],
            **{field: image[key][index].reshape(-1) for field, key in optional.items() if key in image},
        )
        for index in range(len(keypoints))
    ]


def _as_dictionary(found: list[Matches]) -> Data:
    rows0 = [(m.matches0 >= 0).nonzero().squeeze(1) for m in found]
    most0, most1 = (max(len(getattr(m, name)) for m in found) for name in ("matches0", "matches1"))
    return {
        "matches0": pad_stack([m.matches0 for m in found], most0, -1),
        "matches1": pad_stack([m.matches1 for m in found], most1, -1),
        "matching_scores0": pad_stack([m.matching_scores0 for m in found], most0),
        "matching_scores1": pad_stack([m.matching_scores1 for m in found], most1),
        "stop": max(m.stop_layer for m in found),
        "matches": [torch.stack([row, m.matches0[row]], dim=1) for row, m in zip(rows0, found, strict=True)],
        "scores": [m.matching_scores0[row] for row, m in zip(rows0, found, strict=True)],
        "prune0": pad_stack([m.prune0 for m in found], most0),
        "prune1": pad_stack([m.prune1 for m in found], most1),
    }


def match_pair(
    extractor: Extractor,
    matcher: LightGlue,
    image0: Tensor,
    image1: Tensor,
    device: str | torch.device = "cpu",
    **preprocess: Any,
) -> tuple[Data, Data, Data]:
    """Describe and match two images (C, h, w) from 0 to 1; return features 0, features 1 and matches, without batch."""
    place = resolve_device(device)
    extractor, matcher = extractor.to(place), matcher.to(place)
    features = [extractor.extract(image.to(place), **preprocess) for image in (image0, image1)]
    matches = matcher({"image0": features[0], "image1": features[1]})
    return rbd(features[0]), rbd(features[1]), rbd(matches)


def _longest_edge(image: Tensor, edge: int) -> tuple[int, int]:
    """Return the size whose longest edge is ``edge``; as in the original, smaller images are enlarged too."""
    height, width = image.shape[-2:]
    scale = edge / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)
