"""What the matches of two images roughly agree on: a similarity, a plane, and the parts that both images show.

Nothing here says which matches are right; it says how to look at the images again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keyglue.multiview.homography import dlt_homography, homography_from_corners, transfer_error, warp_points
from keyglue.pipelines.views import Float, Size

Complex = NDArray[np.complexfloating[Any, Any]]

# Matches whose best ones every hypothesis is made of, and the shortest distance of two that make one, as a share of
# the diagonal.
_SEEDS, _SHORTEST = 40, 0.01
# A similarity is only what all matches have in common roughly: largest error as a share of the diagonal.
_TOLERANCE = 0.08
# The same for a homography, the number of samples of four matches that are tried unless told, and the smallest share of
# the scores that has to agree unless told.
_PLANE_TOLERANCE, _SAMPLES, _PLANE_SHARE = 0.012, 500, 0.5


class Similarity(NamedTuple):
    """Roughly where things of image 0 are in image 1: x1 = factor x0 + shift, with points x + iy.

    Args:
        factor: How much larger things are in image 1, and how far turned (clockwise, because y points down).
        shift: In pixels of image 1.
        inliers: (S,) booleans, the matches that agree.
        support: Sum of their scores.
    """

    factor: complex
    shift: complex
    inliers: NDArray[np.bool_]
    support: float

    @property
    def degrees(self) -> float:
        """How far image 1 has to be turned counter-clockwise to be the same way up as image 0, from 0 to 360."""
        return math.degrees(np.angle(self.factor)) % 360


def find_similarity(points0: Float, points1: Float, scores: Float, size0: Size, size1: Size) -> Similarity | None:
    """Return the similarity that most matches roughly agree with: the images need not be planes, or the same scale.

    All pairs of the best matches are tried, so the same matches always give the same answer.

    Args:
        points0: (S, 2) matched points of image 0.
        points1: (S, 2) where they are in image 1.
        scores: (S,) scores of the matches.
        size0: Height and width of image 0.
        size1: Height and width of image 1.

    Returns:
        The similarity, or None where the matches allow none.
    """
    from0, to1 = _complex(points0), _complex(points1)
    diagonal0, diagonal1 = math.hypot(*size0), math.hypot(*size1)
    best = np.argsort(-scores, kind="stable")[:_SEEDS]
    first, second = (best[index] for index in np.triu_indices(len(best), 1))
    span0, span1 = from0[first] - from0[second], to1[first] - to1[second]
    apart = (np.abs(span0) > _SHORTEST * diagonal0) & (np.abs(span1) > _SHORTEST * diagonal1)
    first, span0, span1 = first[apart], span0[apart], span1[apart]
    if not len(first):
        return None
    factors = span1 / span0
    shifts = to1[first] - factors * from0[first]

    def agreeing(factors: Complex, shifts: Complex) -> NDArray[np.bool_]:
        error = np.abs(factors[:, None] * from0 + shifts[:, None] - to1)
        near = error < _TOLERANCE * diagonal1
        return near & (error < _TOLERANCE * diagonal0 * np.abs(factors)[:, None])

    inliers = agreeing(factors, shifts)
    winner = int((inliers @ scores).argmax())
    factor, shift, inside = complex(factors[winner]), complex(shifts[winner]), inliers[winner]
    for _ in range(3):  # least squares on those that agree
        weights = scores * inside
        if np.count_nonzero(weights) < 2:
            return None
        centre0, centre1 = (weights @ points / weights.sum() for points in (from0, to1))
        spread = weights @ np.abs(from0 - centre0) ** 2
        if spread <= 0:
            return None
        factor = complex(weights @ ((to1 - centre1) * (from0 - centre0).conj()) / spread)
        shift = complex(centre1 - factor * centre0)
        if factor == 0:
            return None
        inside = agreeing(np.array([factor]), np.array([shift]))[0]
    return Similarity(factor, shift, inside, float(scores @ inside))


def _complex(points: Float) -> Complex:
    return points[:, 0] + 1j * points[:, 1]


def common_parts(
    similarity: Similarity, points0: Float, points1: Float, size0: Size, size1: Size, margin: float = 0.1
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Return the part of each image that the other one shows too, as ``View.part`` takes it.

    Args:
        similarity: Where things of image 0 are in image 1.
        points0: (S, 2) matched points of image 0.
        points1: (S, 2) where they are in image 1.
        size0: Height and width of image 0.
        size1: Height and width of image 1.
        margin: What is added on each side, as a share of the part's sides.
    """
    factor, shift, inliers, _ = similarity

    def corners(size: Size) -> Complex:
        height, width = size
        return np.array([0, width, width + 1j * height, 1j * height]) - 0.5 - 0.5j

    def box(there: Complex, matched: Float, size: Size) -> tuple[int, int, int, int]:
        extent = np.array([size[1], size[0]])
        # What the similarity says the other image shows, and where matches are in any case.
        shown = np.clip(np.c_[there.real, there.imag], -0.5, extent - 0.5)
        low = np.minimum(shown.min(0), matched.min(0))
        high = np.maximum(shown.max(0), matched.max(0))
        room = margin * (high - low) + 8
        low, high = np.maximum(np.floor(low - room), 0), np.minimum(np.ceil(high + room), extent)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    part0 = box((corners(size1) - shift) / factor, points0[inliers], size0)
    return part0, box(corners(size0) * factor + shift, points1[inliers], size1)


def find_plane(
    points0: Float, points1: Float, scores: Float, size1: Size, *, share: float = _PLANE_SHARE, tries: int = _SAMPLES
) -> tuple[Float, NDArray[np.bool_]] | None:
    """Return the homography that most matches roughly agree with, if enough of them do.

    The samples are always the same ones, so the same matches always give the same answer.

    Args:
        points0: (S, 2) matched points of image 0.
        points1: (S, 2) where they are in image 1.
        scores: (S,) scores of the matches.
        size1: Height and width of image 1.
        share: Smallest share of the scores that has to agree.
        tries: Number of samples of four matches that are tried.

    Returns:
        (3, 3) homography from image 0 to image 1 and (S,) booleans, the matches that agree; None where too few do.
    """
    if len(scores) < 4:
        return None
    tolerance = plane_tolerance(size1)
    chance = np.maximum(scores, 1e-6) / np.maximum(scores, 1e-6).sum()
    # The four largest of perturbed logarithms are four matches drawn without replacement, the sure ones more often.
    lots = np.log(chance) + np.random.default_rng(0).gumbel(size=(tries, len(scores)))
    samples = np.argpartition(-lots, 3, axis=1)[:, :4]
    matrices = homography_from_corners(points0[samples], points1[samples])
    x, y, depth = np.moveaxis(matrices @ np.c_[points0, np.ones(len(points0))].T, 1, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        squares = (x / depth - points1[:, 0]) ** 2 + (y / depth - points1[:, 1]) ** 2
        agreeing = squares < tolerance**2  # false where a sample gave no homography
    best = agreeing[int((agreeing @ scores).argmax())]
    H = None
    for _ in range(3):
        H = dlt_homography(points0[best], points1[best], scores[best])
        if H is None:
            return None
        best = transfer_error(H, points0, points1) < tolerance
    return None if H is None or scores @ best < share * scores.sum() else (H, best)


def plane_tolerance(size1: Size) -> float:
    """Return how many pixels of image 1, of a height and width, a match may be off a plane that it agrees with."""
    return _PLANE_TOLERANCE * math.hypot(*size1)


def deformations(H: Float, points: Float) -> Float:
    """Return the derivatives (N, 2, 2) of a homography at points (N, 2)."""
    mapped = warp_points(H, points)
    depth = points @ H[2, :2] + H[2, 2]
    return (H[:2, :2] - mapped[:, :, None] * H[2, :2]) / depth[:, None, None]
