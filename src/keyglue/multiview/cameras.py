"""Pinhole cameras with OpenCV's lens distortion: from pixels to viewing directions and back.

    r2 = x^2 + y^2,   radial = 1 + k1 r2 + k2 r2^2 + k3 r2^3
    x' = x radial + 2 p1 x y + p2 (r2 + 2 x^2),   u = fx x' + cx
    y' = y radial + p1 (r2 + 2 y^2) + 2 p2 x y,   v = fy y' + cy

Frame: the camera looks along +z, x right, y down; the centre of the top-left pixel is at (0, 0).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import Self

from keyglue.base.errors import InputError
from keyglue.images.coordinates import resize_keypoints
from keyglue.multiview.arrays import Array, as_array

_DISTORTION_LENGTHS = (0, 2, 4, 5)
_UNDISTORT_STEPS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera with lens distortion.

    Attributes:
        fx: Horizontal focal length in pixels.
        fy: Vertical focal length in pixels.
        cx: Horizontal position of the principal point in pixels, the centre of the top-left pixel being 0.
        cy: Vertical position of the principal point.
        distortion: (), (k1, k2), (k1, k2, p1, p2) or (k1, k2, p1, p2, k3) of OpenCV's model.
        width: Width of the image in pixels, if known.
        height: Height of the image in pixels, if known.

    Raises:
        InputError: A value is not finite, a focal length or size not positive, or the distortion of another length.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        focal = as_array([self.fx, self.fy, self.cx, self.cy], (4,), "fx, fy, cx, cy")
        if focal[:2].min() <= 0:
            raise InputError(f"focal lengths must be positive, got fx = {self.fx}, fy = {self.fy}.")
        for name, value in zip(("fx", "fy", "cx", "cy"), focal.tolist(), strict=True):
            object.__setattr__(self, name, value)
        distortion = as_array(np.ravel(self.distortion), (None,), "distortion")
        if len(distortion) not in _DISTORTION_LENGTHS:
            raise InputError(
                "distortion must be (), (k1, k2), (k1, k2, p1, p2) or (k1, k2, p1, p2, k3), got "
                f"{len(distortion)} values."
            )
        object.__setattr__(self, "distortion", tuple(distortion.tolist()))
        if (self.width is None) != (self.height is None):
            raise InputError("a camera's width and height must both be given or both be left out.")
        for name in ("width", "height"):
            value = getattr(self, name)
            if value is not None and (int(value) != value or value < 1):
                raise InputError(f"a camera's {name} must be a positive whole number of pixels, got {value!r}.")

    @classmethod
    def from_matrix(cls, K: Any, size: tuple[int, int] | None = None, distortion: Sequence[float] = ()) -> Self:
        """Make a camera from its calibration matrix.

        Args:
            K: (3, 3) matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].
            size: Height and width of the image, if known.
            distortion: Coefficients of OpenCV's model.

        Raises:
            InputError: The matrix is of another form.
        """
        matrix = as_array(K, (3, 3), "a camera matrix")
        if not np.array_equal(matrix[2], (0, 0, 1)):
            raise InputError(f"the third row of a camera matrix must be (0, 0, 1), got {matrix[2].tolist()}.")
        if matrix[0, 1] != 0 or matrix[1, 0] != 0:
            raise InputError("a camera matrix must have zeros beside the focal lengths: skew is not supported.")
        height, width = (None, None) if size is None else size
        return cls(
            fx=matrix[0, 0],
            fy=matrix[1, 1],
            cx=matrix[0, 2],
            cy=matrix[1, 2],
            distortion=tuple(distortion),
            width=width,
            height=height,
        )

    @classmethod
    def from_field_of_view(cls, size: tuple[int, int], degrees: float) -> Self:
        """Make a camera without distortion that looks through the middle of its image.

        Args:
            size: Height and width of the image.
            degrees: Horizontal field of view, between the outer edges of the first and last pixel.

        Raises:
            InputError: The field of view is not between 0 and 180 degrees.
        """
        if not 0 < degrees < 180:
            raise InputError(f"a field of view must lie between 0 and 180 degrees, got {degrees}.")
        height, width = size
        focal = width / 2 / math.tan(math.radians(degrees) / 2)
        return cls(fx=focal, fy=focal, cx=(width - 1) / 2, cy=(height - 1) / 2, width=width, height=height)

    @property
    def matrix(self) -> Array:
        """(3, 3) calibration matrix."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the image, if known."""
        return None if self.width is None or self.height is None else (self.height, self.width)

    def scaled(self, to_size: tuple[int, int]) -> Self:
        """Return the camera of the same image resized to ``to_size`` (height, width).

        Raises:
            InputError: This camera does not know the size of its image.
        """
        if self.size is None:
            raise InputError("a camera must know its width and height to be scaled: give them when you make it.")
        cx, cy = resize_keypoints(np.array([[self.cx, self.cy]]), self.size, to_size)[0].tolist()
        return dataclasses.replace(
            self,
            fx=self.fx * to_size[1] / self.size[1],
            fy=self.fy * to_size[0] / self.size[0],
            cx=cx,
            cy=cy,
            width=to_size[1],
            height=to_size[0],
        )

    def project(self, points3d: Any) -> Array:
        """Project points in camera coordinates to pixels.

        Args:
            points3d: (N, 3) points; one with z <= 0 is not seen and gives NaN.

        Returns:
            (N, 2) pixels, in or outside the image.
        """
        points = as_array(points3d, (None, 3), "points3d")
        depth = np.where(points[:, 2:] > 0, points[:, 2:], np.nan)
        return self.from_ideal(points[:, :2] / depth)

    def from_ideal(self, points: Array) -> Array:
        """Map normalised image coordinates (N, 2), z = 1, to pixels with distortion."""
        if self.distortion:
            points, _ = _distort(points, self.distortion)
        return points * (self.fx, self.fy) + (self.cx, self.cy)

    def undistort(self, points: Any) -> Array:
        """Map pixels to normalised image coordinates: where the viewing ray meets the plane z = 1.

        Args:
            points: (N, 2) pixels.

        Returns:
            (N, 2) coordinates without distortion. Strong distortion folds the image beyond some radius; a pixel
            that no ray reaches gets a point near that fold.
        """
        target = (as_array(points, (None, 2), "points") - (self.cx, self.cy)) / (self.fx, self.fy)
        return _undistort(target, self.distortion) if self.distortion else target


def as_camera(camera: Any) -> Camera:
    """Return a camera from any of the forms in which people hold one.

    Args:
        camera: A ``Camera``, a (3, 3) calibration matrix, or a mapping with "K" and optionally "dist" and the size
            as "w" and "h" or "width" and "height"; other keys are left alone.

    Raises:
        InputError: It is none of these, or not a possible camera.
    """
    if isinstance(camera, Camera):
        return camera
    if not isinstance(camera, Mapping):
        return Camera.from_matrix(camera)
    if "K" not in camera:
        raise InputError(f"a camera given as a dictionary needs the key 'K', got {sorted(map(str, camera))}.")
    width, height = camera.get("w", camera.get("width")), camera.get("h", camera.get("height"))
    size = None if width is None or height is None else (int(height), int(width))
    distortion = camera.get("dist")
    return Camera.from_matrix(camera["K"], size, np.ravel([] if distortion is None else distortion).tolist())


def _distort(points: Array, distortion: tuple[float, ...]) -> tuple[Array, Array]:
    """Return distorted normalised coordinates (N, 2) and their derivative by the ideal ones, (N, 2, 2)."""
    k1, k2, p1, p2, k3 = (*distortion, *(0.0,) * (5 - len(distortion)))
    x, y = points.T
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    slope = 2 * (k1 + r2 * (2 * k2 + r2 * 3 * k3))  # d radial / d x = slope x
    distorted_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    distorted_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    mixed = slope * x * y + 2 * (p1 * x + p2 * y)
    derivative = np.empty((len(points), 2, 2))
    derivative[:, 0, 0] = radial + slope * x * x + 2 * p1 * y + 6 * p2 * x
    derivative[:, 1, 1] = radial + slope * y * y + 6 * p1 * y + 2 * p2 * x
    derivative[:, 0, 1] = derivative[:, 1, 0] = mixed
    return np.stack([distorted_x, distorted_y], axis=1), derivative


def _undistort(target: Array, distortion: tuple[float, ...]) -> Array:
    """Invert ``_distort`` by Newton's method with step halving.

    The search starts at the image's centre and never accepts a point where the determinant of the derivative is not
    positive, so that it stays on the near side of the radius where strong distortion folds back.
    """
    points: Array = np.zeros_like(target)
    value, derivative = _distort(points, distortion)
    residual = value - target
    damping = np.ones((len(target), 1))
    with np.errstate(over="ignore", invalid="ignore"):  # trial steps may go far out; they are rejected
        for _ in range(_UNDISTORT_STEPS):
            if np.abs(residual).max(initial=0) < 1e-14 or damping.max(initial=0) < 1e-9:
                break
            step = np.linalg.solve(derivative, residual[..., None])[..., 0]
            trial = points - damping * step
            value, trial_derivative = _distort(trial, distortion)
            trial_residual = value - target
            closer = np.linalg.norm(trial_residual, axis=1) < np.linalg.norm(residual, axis=1)
            better = (closer & (np.linalg.det(trial_derivative) > 0))[:, None]
            points = np.where(better, trial, points)
            residual = np.where(better, trial_residual, residual)
            derivative = np.where(better[..., None], trial_derivative, derivative)
            damping = np.where(better, np.minimum(1, 2 * damping), damping / 2)
    return points
