"""Pictures that repeat themselves: their matches stay below the threshold, and agree on a plane."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import keyglue
from keyglue.multiview.homography import warp_points

BRICK = np.asarray(Image.open(Path(__file__).parents[2] / "assets/brick.png").convert("RGB"))


def test_a_turned_brick_wall_is_matched() -> None:
    height, width = BRICK.shape[:2]
    turn = np.vstack([cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 20, 1.0), [0, 0, 1]])
    turned = np.asarray(cv2.warpPerspective(BRICK, turn, (width, height)), np.uint8)
    result = keyglue.match(BRICK, turned)
    errors = np.linalg.norm(warp_points(turn, result.points0.astype(float)) - result.points1, axis=1)
    assert np.count_nonzero(errors < 3) > 600
    assert np.mean(errors < 3) > 0.97
    assert result.match_probability is not None
    assert result.match_probability > 0.95


def test_two_parts_of_a_wall_are_not_taken_for_one() -> None:
    half = BRICK.shape[1] // 2
    assert len(keyglue.match(BRICK[:, :half], BRICK[:, half:]).scores) < 5
