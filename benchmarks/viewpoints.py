"""How different two photographs may be: each bundled photograph against itself seen from aside, turned and zoomed.

    python benchmarks/viewpoints.py [--model MODEL] [--only CASE ...] [--out NAME]

"from aside" is a photograph as a camera sees it that looks at it from so many degrees off its normal, about an axis and
with a roll drawn at random; "turned" turns it by an angle, "zoomed" shows its middle so many times as large. A case
counts as found where the homography of the matches (PoseLib, 3 px) maps the corners of the photograph's middle half
closer than 3 pixels to where they are, on average. Methods: ``match``; one look at both images as they are, without
refinement; SIFT with ratio test 0.8.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from common import ASSETS, machine, report, table
from numpy.typing import NDArray
from PIL import Image

import keyglue
from keyglue.multiview.homography import warp_points
from keyglue.multiview.robust import estimate_homography

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "brick.png",
    "grass.png",
    "gravel.png",
)
CASES = {
    "from aside, degrees": (45, 60, 70, 75, 80),
    "turned, degrees": (20, 45, 90, 135),
    "zoomed, times": (2, 3, 4, 6),
}
_PIXELS = 3.0
# Views are drawn so many times as large and then averaged, so that what is compressed is not undersampled.
_FINER = 4
Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Method = Callable[[Pixels, Pixels], tuple[Array, Array]]


def seen_from_aside(size: tuple[int, int], degrees: float, generator: np.random.Generator) -> Array:
    """Return the homography of a photograph (height, width) seen from so many degrees off its normal."""
    height, width = size
    focal = 1.2 * max(size)
    around = generator.uniform(0, 2 * np.pi)
    tilt = cv2.Rodrigues(np.radians(degrees) * np.array([np.cos(around), np.sin(around), 0.0]))[0]
    roll = cv2.Rodrigues(np.radians(generator.uniform(-15, 15)) * np.array([0.0, 0.0, 1.0]))[0]
    turned = roll @ tilt
    middle = np.array([[1.0, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])
    camera = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return camera @ np.column_stack([turned[:, 0], turned[:, 1], [0, 0, focal]]) @ middle


def about_the_middle(size: tuple[int, int], degrees: float, zoom: float) -> Array:
    """Return the homography that turns a photograph about its middle and enlarges it."""
    height, width = size
    matrix = np.eye(3)
    matrix[:2] = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, zoom)
    return matrix


def homography_of(case: str, by: float, size: tuple[int, int], seed: int) -> Array:
    """Return the homography from a photograph to its second view."""
    if case.startswith("from aside"):
        return seen_from_aside(size, by, np.random.default_rng([seed, int(by)]))
    return about_the_middle(size, by, 1.0) if case.startswith("turned") else about_the_middle(size, 0.0, by)


def render(image: Pixels, homography: Array) -> Pixels:
    """Return the view, as large as the photograph; what lies outside is gray."""
    height, width = image.shape[:2]
    finer = np.array([[_FINER, 0, (_FINER - 1) / 2], [0, _FINER, (_FINER - 1) / 2], [0, 0, 1]])
    size = (width * _FINER, height * _FINER)
    large = cv2.warpPerspective(image, finer @ homography, size, flags=cv2.INTER_CUBIC, borderValue=(128, 128, 128))
    return np.asarray(cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def methods(model: str | None) -> dict[str, Method]:
    """Return what is compared: each gives matched points of both images."""
    matcher = keyglue.Matcher.from_pretrained(model)
    sift = keyglue.SIFTForKeypointDetection(keyglue.SIFTConfig(max_keypoints=1024))

    def learned(first: Pixels, second: Pixels, **how: bool | float) -> tuple[Array, Array]:
        result = matcher.match(first, second, **how)  # pyright: ignore[reportArgumentType]
        return result.points0.astype(float), result.points1.astype(float)

    def classical(first: Pixels, second: Pixels) -> tuple[Array, Array]:
        described = [sift.extract(keyglue.load_image(image)) for image in (first, second)]
        pairs = keyglue.match_nearest(*(each.descriptors for each in described), ratio=0.8).indices.T
        points = [each.keypoints[index].double().numpy() for each, index in zip(described, pairs, strict=True)]
        return points[0], points[1]

    one_look = functools.partial(learned, rotate=0, zoom=1, refine=False)
    return {"match": learned, "one look": one_look, "SIFT": classical}


def judge(points: tuple[Array, Array], homography: Array, size: tuple[int, int]) -> tuple[bool, int]:
    """Return whether the homography of the matches is right, and how many of them are."""
    height, width = size
    right = int((np.linalg.norm(warp_points(homography, points[0]) - points[1], axis=1) < _PIXELS).sum())
    found = estimate_homography(*points, threshold=_PIXELS).matrix
    if found is None:
        return False, right
    corners = np.array([[x * (width - 1), y * (height - 1)] for x in (0.25, 0.75) for y in (0.25, 0.75)])
    error = np.linalg.norm(warp_points(found, corners) - warp_points(homography, corners), axis=1).mean()
    return bool(error < _PIXELS), right


def measure(images: list[Pixels], compared: dict[str, Method], case: str, by: float) -> dict[str, dict[str, float]]:
    """Return for each method in how many photographs it found the homography, and its right matches on average."""
    judged: dict[str, list[tuple[bool, int]]] = {name: [] for name in compared}
    for seed, image in enumerate(images):
        size = (image.shape[0], image.shape[1])
        homography = homography_of(case, by, size, seed)
        view = render(image, homography)
        for name, method in compared.items():
            judged[name].append(judge(method(image, view), homography, size))
    return {
        name: {"found": sum(found for found, _ in results), "matches": float(np.mean([right for _, right in results]))}
        for name, results in judged.items()
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model to measure; the bundled one unless given")
    parser.add_argument("--photographs", type=int, default=len(PHOTOGRAPHS), help="look at so many of the photographs")
    parser.add_argument("--only", nargs="+", choices=[case.split(",")[0] for case in CASES], help="only these cases")
    parser.add_argument("--out", type=Path, help="where to write NAME.json and NAME.md, without the suffix")
    given = parser.parse_args()
    images = [np.asarray(Image.open(ASSETS / name).convert("RGB")) for name in PHOTOGRAPHS[: given.photographs]]
    compared = methods(given.model)
    tables: dict[str, str] = {}
    data: dict[str, dict[float, dict[str, dict[str, float]]]] = {}
    for case, values in CASES.items():
        if given.only and case.split(",")[0] not in given.only:
            continue
        data[case] = {by: measure(images, compared, case, by) for by in values}
        rows = [
            [name, *(f"{cell['found']}, {cell['matches']:.0f}" for cell in (data[case][by][name] for by in values))]
            for name in compared
        ]
        tables[case] = table(["homographies found, right matches", *map(str, values)], rows)
    about = {**machine("default"), "photographs": len(images)}
    report("How different two photographs may be", about, tables, data, given.out)


if __name__ == "__main__":
    main()
