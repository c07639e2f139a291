"""SIFT through OpenCV: keypoints with scale and orientation, and descriptors of length 128.

Lowe, "Distinctive Image Features from Scale-Invariant Keypoints", IJCV 2004. RootSIFT: Arandjelovic and Zisserman,
"Three things everyone should know to improve object retrieval", CVPR 2012. There are no weights: the model works as it
is made.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from keyglue.base.config import PretrainedConfig, config_dataclass, require_bool, require_int, require_number
from keyglue.base.errors import ConfigError, InputError, MissingDependencyError
from keyglue.base.types import Features
from keyglue.keypoints.detector import KeypointDetector, one_channel

_DESCRIPTOR_DIM = 128


@config_dataclass
class SIFTConfig(PretrainedConfig):
    """Settings of SIFT.

    The thresholds are those that the published LightGlue for SIFT was trained with: COLMAP's peak threshold of 0.0067
    is 0.02 in OpenCV's terms, which divide it by the number of layers.

    Args:
        max_keypoints: Largest number of keypoints an image, those of the strongest response; -1 for all.
        nfeatures: Largest number that OpenCV describes, before points at one place are thinned out; 0 for all. A value
            somewhat above ``max_keypoints`` saves time.
        contrast_threshold: Least contrast of a keypoint.
        edge_threshold: Largest ratio of curvatures of a keypoint; larger keeps more points on edges.
        num_octave_layers: Scales an octave.
        first_octave: Octave of the first scale; -1, twice the image's resolution, is all that OpenCV offers.
        rootsift: Return RootSIFT descriptors, which LightGlue expects, instead of SIFT's own.
        nms_radius: No two keypoints lie within this many pixels along both axes; 0 keeps one keypoint a pixel, None all
            of them, several orientations at one place included.
        descriptor_decoder_dim: Length of a descriptor: 128.
    """

    model_type: ClassVar[str] = "sift"

    max_keypoints: int = -1
    nfeatures: int = 0
    contrast_threshold: float = 0.02
    edge_threshold: float = 10.0
    num_octave_layers: int = 3
    first_octave: int = -1
    rootsift: bool = True
    nms_radius: int | None = 0
    descriptor_decoder_dim: int = _DESCRIPTOR_DIM

    def validate(self) -> None:
        """Check every value.

        Raises:
            ConfigError: A value is impossible.
        """
        super().validate()
        require_int(self, "max_keypoints", -1)
        require_int(self, "nfeatures", 0)
        require_number(self, "contrast_threshold", 0)
        require_number(self, "edge_threshold", 1)
        require_int(self, "num_octave_layers", 1)
        require_bool(self, "rootsift")
        if self.nms_radius is not None:
            require_int(self, "nms_radius", 0)
        if self.first_octave != -1:
            raise ConfigError(f"first_octave must be -1: OpenCV's SIFT starts nowhere else, got {self.first_octave!r}.")
        if self.descriptor_decoder_dim != _DESCRIPTOR_DIM:
            raise ConfigError(
                f"descriptor_decoder_dim must be {_DESCRIPTOR_DIM}, the length of a SIFT descriptor, got "
                f"{self.descriptor_decoder_dim!r}."
            )


class SIFTForKeypointDetection(KeypointDetector):
    """SIFT as a keypoint detector; it runs on the CPU and returns Features on the image's device.

    Args:
        config: Settings; the defaults unless given.
    """

    config_class = SIFTConfig
    config: SIFTConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: SIFTConfig | None = None) -> None:
        super().__init__(SIFTConfig() if config is None else config)

    def extract(self, image: Tensor, *, mask: Tensor | None = None) -> Features:
        """Find and describe the keypoints of one image.

        Args:
            image: (C, h, w) with C = 1 or 3, values from 0 to 1.
            mask: (h, w) boolean, true where keypoints are wanted.

        Returns:
            Features in pixels of ``image``, the strongest response first: keypoint_scores are OpenCV's response, scales
            diameters in pixels, orientations radians from x towards y, descriptors (N, 128) of length one.

        Raises:
            InputError: A shape, type or value is not as described.
            MissingDependencyError: OpenCV is not installed.
        """
        if image.ndim != 3 or 0 in image.shape:
            raise InputError(f"an image must have shape (C, h, w) with at least one pixel, got {tuple(image.shape)}.")
        size = (image.shape[1], image.shape[2])
        if mask is not None and tuple(mask.shape) != size:
            raise InputError(f"a mask must have the image's size {size}, got {tuple(mask.shape)}.")
        gray = one_channel(image[None])[0, 0].detach().float().clamp(0, 1).mul(255).round()
        table, descriptors = self._detect(gray.to("cpu", torch.uint8).numpy())
        wanted = None if mask is None else mask.detach().cpu().bool().numpy()
        chosen = self._choose(table, size, wanted)
        found = torch.from_numpy(table[chosen]).to(image.device, torch.float32)
        return Features(
            keypoints=found[:, :2].contiguous(),
            descriptors=self._finish(torch.from_numpy(descriptors[chosen]).to(image.device)),
            image_size=size,
            keypoint_scores=found[:, 2].contiguous(),
            scales=found[:, 3].contiguous(),
            orientations=torch.deg2rad(found[:, 4]),
            detector="sift",
        )

    def _detect(self, gray: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return a table (N, 5) of x, y, response, diameter and angle in degrees, and the raw descriptors (N, 128)."""
        try:
            import cv2
        except ImportError as error:
            raise MissingDependencyError("OpenCV", "opencv", "SIFT") from error
        config = self.config
        # Without the precise upscaling every keypoint is a quarter of a pixel off to the right and down.
        library: Any = cv2
        sift = library.SIFT_create(
            nfeatures=config.nfeatures,
            nOctaveLayers=config.num_octave_layers,
            contrastThreshold=config.contrast_threshold,
            edgeThreshold=config.edge_threshold,
            enable_precise_upscale=True,
        )
        points, descriptors = sift.detectAndCompute(np.ascontiguousarray(gray), None)
        if not len(points):
            return np.zeros((0, 5)), np.zeros((0, _DESCRIPTOR_DIM), dtype=np.float32)
        return np.array([(*p.pt, p.response, p.size, p.angle) for p in points], dtype=np.float64), descriptors

    def _choose(
        self, table: NDArray[np.float64], size: tuple[int, int], mask: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the rows of the table to keep, best response first; ties go by angle, then place, then size."""
        x, y, response, diameter, angle = table.T
        order = np.lexsort((diameter, x, y, angle, -response))
        rows = np.rint(y).astype(np.int64).clip(0, size[0] - 1)
        columns = np.rint(x).astype(np.int64).clip(0, size[1] - 1)
        free = np.ones(size, dtype=bool) if mask is None else mask.copy()
        order = order[free[rows[order], columns[order]]]
        if self.config.nms_radius is not None:
            order = _thin_out(order, rows, columns, free, self.config.nms_radius)
        return order[: self.config.max_keypoints] if self.config.max_keypoints >= 0 else order

    def _finish(self, descriptors: Tensor) -> Tensor:
        """Return descriptors (N, 128) of length one, as RootSIFT if the configuration says so."""
        if self.config.rootsift:
            descriptors = normalize(descriptors, p=1, dim=1).sqrt()
        return normalize(descriptors, dim=1)


def _thin_out(
    order: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    free: NDArray[np.bool_],
    radius: int,
) -> NDArray[np.int64]:
    """Walk through the points, best first, and keep those whose pixel no better one has taken; uses up ``free``."""
    kept: list[int] = []
    for index in order.tolist():
        row, column = rows[index], columns[index]
        if free[row, column]:
            kept.append(index)
            free[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1] = False
    return np.array(kept, dtype=np.int64)
