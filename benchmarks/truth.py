"""How good the true homographies of a set are: whether the images agree with them.

    python benchmarks/truth.py SET --data DIR [--out NAME]

SET is one of those of ``keyglue score`` that come with homographies. Two homographies are estimated for each pair from
many matches at up to 1600 pixels, one from keyglue's and one from SIFT's (PoseLib, 2 px), and compared with the truth
and with each other: mean distance of the corners of image 0 in pixels, images resized to a long side of 1024, as in
scoring. The likeness under a homography is the correlation of image 0 and image 1 warped to it, mean over all windows
of 31 pixels. Where two estimates that know nothing of each other agree better than either with the truth, and the
images look more alike under them, the truth is wrong by that much, and no method can come closer to it but by chance.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from common import machine, report, table
from numpy.typing import NDArray
from torch import Tensor

import keyglue
from keyglue.images.resize import resize_image, resized_size, to_grayscale
from keyglue.multiview.homography import corner_error
from keyglue.multiview.metrics import auc
from keyglue.multiview.robust import estimate_homography
from keyglue.scoring.pairs import LONG_SIDE_1024, HomographyTruth, ScoredPair
from keyglue.scoring.run import read_set

_KEYPOINTS, _LONGEST, _PIXELS = 4096, 1600, 2.0
_WINDOW = 31
_THRESHOLDS = (1, 3, 5, 10)
Array = NDArray[Any]


class Row(NamedTuple):
    """What was measured of a pair: distances in pixels, and likenesses."""

    keyglue: float
    sift: float
    between: float
    alike_truth: float
    alike_keyglue: float
    alike_sift: float

    @property
    def of_images(self) -> float:
        """Distance to the truth of the estimate under which the images look most alike."""
        return self.keyglue if self.alike_keyglue >= self.alike_sift else self.sift


def likeness(image0: Tensor, image1: Tensor, H: Array | None) -> float:
    """Return how much image 1, warped by a homography from image 0 to it, looks like image 0; -1 without one."""
    if H is None:
        return -1.0
    first, second = (to_grayscale(image)[0].numpy().astype(np.float64) for image in (image0, image1))
    size, flags = (first.shape[1], first.shape[0]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = np.asarray(cv2.warpPerspective(second, H, size, flags=flags))
    shown = np.asarray(cv2.warpPerspective(np.ones_like(second), H, size, flags=flags)) == 1
    if not shown.any():
        return -1.0

    def mean(of: Array) -> Array:
        return np.asarray(cv2.blur(of, (_WINDOW, _WINDOW)))

    m0, m1 = mean(first), mean(warped)
    spread = [np.sqrt(np.maximum(mean(x * x) - m * m, 1.0)) for x, m in ((first, m0), (warped, m1))]
    return float(((mean(first * warped) - m0 * m1) / (spread[0] * spread[1]))[shown].mean())


def measure(pair: ScoredPair, matcher: keyglue.Matcher, sift: keyglue.SIFTForKeypointDetection) -> Row:
    """Estimate the homography of a pair twice, and compare."""
    if not isinstance(pair.truth, HomographyTruth):
        raise SystemExit("the truth of this set is no homography")
    read = [picture.read().round().clamp(0, 255).to(torch.uint8) for picture in (pair.image0, pair.image1)]
    sizes = [(image.shape[-2], image.shape[-1]) for image in read]
    frame = [resized_size(size, LONG_SIDE_1024) for size in sizes]
    images = [resize_image(image, size) for image, size in zip(read, frame, strict=True)]
    truth = pair.truth.resized((sizes[0], frame[0]), (sizes[1], frame[1])).H

    def estimate(points0: Array, points1: Array) -> Array | None:
        matrix = estimate_homography(points0, points1, threshold=_PIXELS).matrix
        if matrix is None:
            return None
        return HomographyTruth(H=matrix).resized((sizes[0], frame[0]), (sizes[1], frame[1])).H

    found = matcher.match(*read)
    learned = estimate(found.points0.astype(float), found.points1.astype(float))
    described = [sift.extract(keyglue.load_image(image)) for image in read]
    pairs = keyglue.match_nearest(*(each.descriptors for each in described), ratio=0.8).indices.T
    classical = estimate(*(each.keypoints[i].double().numpy() for each, i in zip(described, pairs, strict=True)))
    return Row(
        corner_error(learned, truth, frame[0]),
        corner_error(classical, truth, frame[0]),
        np.inf if learned is None or classical is None else corner_error(learned, classical, frame[0]),
        *(likeness(images[0], images[1], H) for H in (truth, learned, classical)),
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", help="a set with homographies, as keyglue score names it")
    parser.add_argument("--data", required=True, help="its folder")
    parser.add_argument("--out", type=Path, help="where to write NAME.json and NAME.md, without the suffix")
    given = parser.parse_args()
    matcher = keyglue.Matcher.from_pretrained(max_keypoints=_KEYPOINTS, resize=_LONGEST)
    sift = keyglue.SIFTForKeypointDetection(keyglue.SIFTConfig(max_keypoints=2 * _KEYPOINTS))
    rows = {pair.name: measure(pair, matcher, sift) for pair in read_set(given.set, given.data).pairs}
    header = ["pair", "keyglue - truth", "SIFT - truth", "keyglue - SIFT", "likeness under truth, keyglue, SIFT"]
    cells = [
        [name, *(f"{value:.1f}" for value in row[:3]), ", ".join(f"{value:.3f}" for value in row[3:])]
        for name, row in rows.items()
    ]
    best = auc([row.of_images for row in rows.values()], _THRESHOLDS)
    line = f"AUC at {'/'.join(map(str, _THRESHOLDS))} px of the homography under which the images look most alike: "
    line += "/".join(f"{100 * value:.1f}" for value in best) + "\n"
    data = {
        "pairs": {name: row._asdict() for name, row in rows.items()},
        "auc": dict(zip(_THRESHOLDS, best, strict=True)),
    }
    about = {**machine("default"), "keypoints": _KEYPOINTS, "longest edge": _LONGEST}
    report(
        f"How good the truth of {given.set} is",
        about,
        {"pixels": table(header, cells), "at best": line},
        data,
        given.out,
    )


if __name__ == "__main__":
    main()
