"""What ``Matcher`` does with a photograph taken in the dark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import keyglue
from keyglue.images.read import load_pixels


def right(result: keyglue.PairResult, disparity: np.ndarray) -> int:
    """Return how many matches of the stereo pair lie within 3 pixels of the measured disparity."""
    x, y = result.points0.round().astype(int).T
    shift = result.points0 - result.points1
    return int(np.count_nonzero(np.hypot(shift[:, 0] - disparity[y, x], shift[:, 1]) < 3))


def in_the_dark(path: Path) -> Tensor:
    """Return a photograph (3, h, w) with 6 % of its light."""
    return (load_pixels(path, guess_range=False).float() * 0.06).round().to(torch.uint8)


def test_a_dark_photograph_is_equalised(assets: Path) -> None:
    left, night = assets / "motorcycle_left.png", in_the_dark(assets / "motorcycle_right.png")
    disparity = np.load(assets / "motorcycle_disparity.npz")["disparity"]
    found = {equalize: right(keyglue.match(left, night, equalize=equalize), disparity) for equalize in (False, True)}
    assert found[True] > 1.25 * found[False] > 100


def test_what_is_kept_of_it_and_read_again_is_the_same(assets: Path, tmp_path: Path) -> None:
    left, night = assets / "motorcycle_left.png", tmp_path / "night.png"
    Image.fromarray(in_the_dark(assets / "motorcycle_right.png").permute(1, 2, 0).numpy()).save(night)
    matcher = keyglue.Matcher.from_pretrained(max_keypoints=256)
    read = matcher.match(left, night, rotate=0, zoom=2)
    kept = matcher.match(left, matcher.prepare(night), rotate=0, zoom=2)  # in another size: the file is read again
    np.testing.assert_array_equal(kept.keypoints1, read.keypoints1)
    np.testing.assert_array_equal(kept.matches, read.matches)
    plain = keyglue.Matcher.from_pretrained(max_keypoints=256, equalize=False).match(left, night, rotate=0, zoom=2)
    assert not np.array_equal(plain.keypoints1, read.keypoints1)
