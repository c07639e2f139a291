"""Sizes, Pillow's very pixels, and gray."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import InputError
from keyglue.images.read import read_image
from keyglue.images.resize import check_target, resize_image, resized_size, to_grayscale


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((500, 741), {"height": 480, "width": 640}, (480, 640)),
        ((500, 741), {"longest_edge": 640}, (432, 640)),
        ((741, 500), {"longest_edge": 640}, (640, 432)),
        ((100, 200), {"longest_edge": 640}, (100, 200)),  # never enlarged
        ((100, 200), {"shortest_edge": 300}, (300, 600)),  # enlarged
        ((500, 741), {"shortest_edge": 250}, (250, 371)),  # 370.5 rounds up
        ((100, 1000), {"shortest_edge": 300, "longest_edge": 640}, (64, 640)),
        ((100, 150), {"shortest_edge": 300, "longest_edge": 640}, (300, 450)),
        ((1, 5000), {"longest_edge": 640}, (1, 640)),  # never below a pixel
        ((500, 741), {"height": None, "width": None, "longest_edge": 640}, (432, 640)),
    ],
)
def test_resized_size(size, target, expected):
    assert resized_size(size, target) == expected


@pytest.mark.parametrize(
    "target",
    [
        640,
        "640",
        None,
        {},
        {"height": 480},
        {"height": 480, "width": 0},
        {"height": 480.5, "width": 640},
        {"height": "480", "width": 640},
        {"longest_edge": True},
        {"longest_edge": 640, "height": 480, "width": 640},
        {"max_height": 480, "max_width": 640},
    ],
)
def test_impossible_targets_are_refused(target):
    with pytest.raises(InputError, match="size"):
        check_target(target)


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("size", [(480, 640), (101, 37), (900, 1200)])
def test_bytes_come_out_as_from_pillow(assets, resample, size):
    picture = Image.open(assets / "chelsea.png")
    expected = np.asarray(picture.resize((size[1], size[0]), Image.Resampling(resample))).transpose(2, 0, 1)
    from_bytes = resize_image(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(), size, resample)
    assert from_bytes.dtype == torch.uint8
    assert np.array_equal(from_bytes.numpy(), expected)
    from_floats = resize_image(read_image(picture), size, resample)
    assert from_floats.dtype == torch.float32
    assert np.array_equal(from_floats.numpy(), expected)


@pytest.mark.parametrize("resample", range(6))
def test_floats_keep_their_precision_and_range(assets, resample):
    image = read_image(assets / "chelsea.png")
    exact = resize_image(image, (100, 150), resample)
    scaled = resize_image(image / 255, (100, 150), resample)
    assert (scaled * 255 - exact).abs().max() <= 1.01  # bytes are rounded after each axis, floats are not
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    if resample != Image.Resampling.NEAREST:
        assert not torch.equal(scaled * 255, (scaled * 255).round())


def test_a_picture_of_zeros_and_ones_is_not_taken_for_bytes():
    checks = (torch.arange(64).reshape(1, 8, 8) % 2).float()
    assert resize_image(checks, (8, 4), "box").unique().tolist() == [0.5]


def test_same_size_is_left_alone():
    image = torch.rand(3, 5, 7)
    assert torch.equal(resize_image(image, (5, 7)), image)


def test_resize_refuses_what_is_no_image():
    with pytest.raises(InputError, match="shape"):
        resize_image(torch.zeros(4, 4), (2, 2))
    with pytest.raises(InputError, match="at least one pixel"):
        resize_image(torch.zeros(1, 4, 4), (0, 2))
    with pytest.raises(InputError, match="filter"):
        resize_image(torch.zeros(1, 4, 4), (2, 2), "best")
    with pytest.raises(InputError, match="no pixels"):
        resized_size((0, 4), {"longest_edge": 4})


def test_gray_is_the_weighted_sum():
    image = torch.tensor([10.0, 20.0, 30.0]).reshape(3, 1, 1).expand(3, 2, 2)
    expected = 0.2989 * 10 + 0.5870 * 20 + 0.1140 * 30
    torch.testing.assert_close(to_grayscale(image), torch.full((1, 2, 2), expected))


def test_gray_images_keep_their_values_each_by_itself():
    gray, colour = torch.rand(1, 4, 4).expand(3, 4, 4), torch.rand(3, 4, 4)
    batch = to_grayscale(torch.stack([gray, colour]))
    assert batch.shape == (2, 1, 4, 4)
    assert torch.equal(batch[0], gray[:1])
    assert torch.equal(batch[1], to_grayscale(colour))
    assert torch.equal(to_grayscale(gray[:1]), gray[:1])
    with pytest.raises(InputError, match="1 or 3"):
        to_grayscale(torch.rand(4, 4, 4))
