"""Pictures that repeat themselves: their matches stay below the threshold, and agree on a plane."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import keyglue
from keyglue.multiview.homography import warp_points

BRICK = np.asarray(Image.open(Path(__file__).parents[2] / "assets/brick.png").convert("RGB"))


MOTORCYCLE = np.asarray(Image.open(Path(__file__).parents[2] / "assets/motorcycle_left.png").convert("RGB"))


@pytest.fixture(scope="module")
def turn() -> np.ndarray:
    """Turn of the wall by 20 degrees, (3, 3)."""
    height, width = BRICK.shape[:2]
    return np.vstack([cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 20, 1.0), [0, 0, 1]])


@pytest.fixture(scope="module")
def turned(turn: np.ndarray) -> np.ndarray:
    """The wall turned."""
    height, width = BRICK.shape[:2]
    return np.asarray(cv2.warpPerspective(BRICK, turn, (width, height)), np.uint8)


def test_a_turned_brick_wall_is_matched(turn: np.ndarray, turned: np.ndarray) -> None:
    result = keyglue.match(BRICK, turned)
    errors = np.linalg.norm(warp_points(turn, result.points0.astype(float)) - result.points1, axis=1)
    assert np.count_nonzero(errors < 3) > 600
    assert np.mean(errors < 3) > 0.97
    assert result.match_probability is not None
    assert result.match_probability > 0.95


def test_no_score_lies_below_the_threshold(turned: np.ndarray) -> None:
    found: list[int] = []
    for threshold in (0.9, 0.995):
        scores = (
            keyglue.Matcher.from_pretrained("keyglue-small", filter_threshold=threshold).match(BRICK, turned).scores
        )
        assert (scores > threshold).all()
        found.append(len(scores))
    assert found[0] > 600
    assert found[1] < 5  # some 800 of 1024 keypoints agree, which is a score of 0.985


def test_what_matches_beside_the_wall_is_kept(turned: np.ndarray) -> None:
    """A picture that hangs before the wall moves by itself: the plane of the wall is not all there is."""
    picture = MOTORCYCLE[200:290, 240:330]
    image0, image1 = BRICK.copy(), turned.copy()
    image0[100:190, 100:190] = picture
    image1[200:290, 220:310] = picture
    result = keyglue.match(image0, image1)
    moved = np.linalg.norm(result.points1 - result.points0 - [120, 100], axis=1) < 2
    assert np.count_nonzero(moved) >= 8


def test_two_parts_of_a_wall_are_not_taken_for_one() -> None:
    half = BRICK.shape[1] // 2
    assert len(keyglue.match(BRICK[:, :half], BRICK[:, half:]).scores) < 5
