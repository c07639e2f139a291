"""Pixel centres: every mapping is checked against what happens to the pixels themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyglue.images.coordinates import (
    from_colmap,
    normalize_keypoints,
    pixels_to_relative,
    relative_to_pixels,
    resize_keypoints,
    to_colmap,
    turn_keypoints,
    turned_size,
    unturn_keypoints,
)
from keyglue.images.resize import resize_image

SIZE = (5, 7)


def grid(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1).float()


def test_resize_maps_corners_to_corners_and_pixel_centres_to_block_centres():
    corners = torch.tensor([[-0.5, -0.5], [6.5, 4.5]])
    assert resize_keypoints(corners, SIZE, (10, 28)).tolist() == [[-0.5, -0.5], [27.5, 9.5]]
    # The top-left pixel becomes a block of 4 x 2, whose centre lies between its pixels.
    assert resize_keypoints(torch.zeros(1, 2), SIZE, (10, 28)).tolist() == [[1.5, 0.5]]


def test_resize_agrees_with_the_resized_picture():
    ramp = torch.arange(64.0).expand(32, 64)[None] + 100.5  # value = x + 100.5, so values give coordinates back
    small = resize_image(ramp, (16, 16), "box")[0, 3] - 100.5
    points = torch.stack([torch.arange(16.0), torch.full((16,), 3.0)], dim=1)
    mapped = resize_keypoints(points, (16, 16), (32, 64))
    torch.testing.assert_close(mapped[:, 0], small)


@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_resize_and_relative_round_trips(h0, w0, h1, w1, u, v):
    points = np.array([[u * w0, v * h0]])
    there = resize_keypoints(points, (h0, w0), (h1, w1))
    np.testing.assert_allclose(resize_keypoints(there, (h1, w1), (h0, w0)), points, atol=1e-6)
    np.testing.assert_allclose(relative_to_pixels(pixels_to_relative(points, (h0, w0)), (h0, w0)), points, atol=1e-6)


def test_relative_is_x_over_width():
    assert pixels_to_relative(torch.tensor([[320.0, 120.0]]), (480, 640)).tolist() == [[0.5, 0.25]]


def test_sizes_broadcast_over_pairs():
    relative = torch.full((3, 2, 4, 2), 0.5)
    sizes = torch.tensor([[[480, 640], [100, 200]], [[10, 20], [30, 40]], [[2, 4], [6, 8]]])
    pixels = relative_to_pixels(relative, sizes)
    assert pixels.shape == (3, 2, 4, 2)
    assert pixels[0, 1, 2].tolist() == [100.0, 50.0]
    assert pixels[2, 0, 3].tolist() == [2.0, 1.0]
    as_numpy = relative_to_pixels(relative.numpy(), sizes.numpy())
    np.testing.assert_array_equal(as_numpy, pixels.numpy())
    torch.testing.assert_close(pixels_to_relative(pixels, sizes), relative)


def test_normalize_uses_the_longer_side():
    points = torch.tensor([[0.0, 0.0], [640.0, 480.0], [320.0, 240.0]])
    expected = [[-1.0, -0.75], [1.0, 0.75], [0.0, 0.0]]
    assert normalize_keypoints(points, (480, 640)).tolist() == expected
    np.testing.assert_array_equal(normalize_keypoints(points.numpy(), (480, 640)), np.array(expected))


def test_colmap_adds_half_a_pixel():
    points = torch.tensor([[0.0, 3.25]])
    assert to_colmap(points).tolist() == [[0.5, 3.75]]
    assert from_colmap(to_colmap(points)).tolist() == points.tolist()


@pytest.mark.parametrize("turns", range(-4, 8))
@pytest.mark.parametrize("kind", [np, torch])
def test_quarter_turns_follow_rot90(turns, kind):
    image = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
    turned = np.rot90(image, turns)
    assert turned_size(SIZE, 90 * turns) == turned.shape
    points = grid(*SIZE)
    mapped = turn_keypoints(points.numpy() if kind is np else points, 90 * turns, SIZE)
    assert isinstance(mapped, np.ndarray) == (kind is np)
    x, y = np.asarray(mapped).astype(int).T
    assert (turned[y, x] == image.reshape(-1)).all()
    back = unturn_keypoints(mapped, 90 * turns, SIZE)
    np.testing.assert_array_equal(np.asarray(back), points.numpy())


@pytest.mark.parametrize("degrees", [-30.0, 12.5, 45.0, 135.0, 300.0])
def test_turns_by_any_angle_keep_distances_and_stay_inside(degrees):
    points = grid(*SIZE).double()
    mapped = turn_keypoints(points, degrees, SIZE)
    torch.testing.assert_close(torch.cdist(mapped, mapped), torch.cdist(points, points), atol=1e-5, rtol=1e-5)
    height, width = turned_size(SIZE, degrees)
    assert (mapped.amin(0) > -0.5).all()
    assert mapped[:, 0].max() < width - 0.5
    assert mapped[:, 1].max() < height - 0.5
    torch.testing.assert_close(unturn_keypoints(mapped, degrees, SIZE), points)
    # Counter-clockwise: what points right points up afterwards, as far as it is turned; y goes down.
    right = mapped[1] - mapped[0]
    assert math.degrees(math.atan2(-right[1], right[0])) % 360 == pytest.approx(degrees % 360)


def test_whole_number_points_keep_their_half_pixels():
    mapped = resize_keypoints(torch.tensor([[1, 1]]), (2, 2), (3, 3))
    assert mapped.tolist() == [[1.75, 1.75]]
    assert resize_keypoints(np.array([[1, 1]]), (2, 2), (3, 3)).tolist() == [[1.75, 1.75]]


def test_no_points_stay_no_points():
    for function in (resize_keypoints,):
        assert function(torch.zeros(0, 2), (4, 4), (8, 8)).shape == (0, 2)
    assert turn_keypoints(torch.zeros(0, 2), 90, (4, 4)).shape == (0, 2)
    assert normalize_keypoints(torch.zeros(0, 2), (4, 4)).shape == (0, 2)
