"""Arrays, tensors and masks are read right or refused with keyglue's own error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import ImageError, InputError
from keyglue.images.read import image_size, load_pixels, read_image, read_mask

GRADIENT = np.add.outer(np.arange(20, dtype=np.uint8) * 3, np.arange(30, dtype=np.uint8) * 6)
COLOUR = np.stack([GRADIENT, GRADIENT[::-1], 255 - GRADIENT], axis=2)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((20, 30), (1, 20, 30)),
        ((20, 30, 1), (1, 20, 30)),
        ((1, 20, 30), (1, 20, 30)),
        ((20, 30, 3), (3, 20, 30)),
        ((3, 20, 30), (3, 20, 30)),
        ((20, 30, 4), (3, 20, 30)),
        ((4, 20, 30), (3, 20, 30)),
        ((3, 20, 3), (3, 20, 3)),  # both possible: channels first
        ((1, 1), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("kind", [np, torch])
def test_layouts_of_arrays(shape, expected, kind):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = read_image(array if kind is np else torch.from_numpy(array))
    assert image.shape == expected
    assert image_size(array) == expected[1:]


def test_explicit_layout():
    array = np.random.default_rng(0).integers(0, 256, (3, 20, 3), dtype=np.uint8)
    last = read_image(array, input_data_format="channels_last")
    assert np.array_equal(last.numpy(), array.transpose(2, 0, 1))
    assert image_size(array, input_data_format="channels_last") == (3, 20)
    assert read_image(array[0], input_data_format="none").shape == (1, 20, 3)
    with pytest.raises(ImageError, match="none"):
        read_image(array, input_data_format="none")
    with pytest.raises(ImageError, match="channels_first"):
        read_image(COLOUR, input_data_format="channels_first")


@pytest.mark.parametrize("shape", [(5,), (2, 20, 30), (20, 30, 2), (1, 3, 20, 30), (0, 5), (3, 0, 5), (20, 30, 5), ()])
def test_other_shapes_are_refused(shape):
    for make in (np.zeros, torch.zeros):
        with pytest.raises(ImageError, match="shape"):
            read_image(make(shape))
        with pytest.raises(ImageError, match="shape"):
            image_size(make(shape))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 255]], np.uint8), [0, 255]),
        (np.array([[0, 65535]], np.uint16), [0, 255]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 200]], np.int64), [0, 200]),
        (np.array([[0.0, 1.0]]), [0, 255]),  # floats that are nowhere above 1 are 0..1
        (np.array([[0.0, 1.5]], np.float16), [0, 1.5]),
        (torch.tensor([[0.0, 0.5]], dtype=torch.bfloat16), [0, 127.5]),
        (torch.tensor([[0.0, 0.5]], requires_grad=True), [0, 127.5]),
        (torch.tensor([[0, 65535]], dtype=torch.uint16), [0, 255]),
    ],
)
def test_number_types(array, expected):
    image = read_image(array)
    assert image.flatten().tolist() == expected
    assert image.dtype == torch.float32
    assert not image.requires_grad


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "infinite"),
        (np.array([[0.0, -0.1]]), "negative"),
        (np.array([[0, -1]]), "negative"),
        (np.array([[0, 256]]), "up to 256"),
        (np.array([[0.0, 300.0]]), "up to 300"),
        (np.array([[0, 1j]]), "complex"),
        (np.array([["a", "b"]]), "type"),
        (np.array([[None, 1]]), "type"),
        (torch.tensor([[0.0, float("nan")]]), "NaN"),
    ],
)
def test_bad_numbers_are_refused(array, message):
    with pytest.raises(ImageError, match=message):
        read_image(array)


def test_reading_never_shares_memory_with_the_caller():
    array = np.full((3, 4, 5), 9.0, np.float32)
    read_image(array)[:] = 0
    tensor = torch.full((3, 4, 5), 9.0)
    read_image(tensor)[:] = 0
    assert array.min() == 9
    assert tensor.min() == 9
    flipped = np.ascontiguousarray(COLOUR)[:, ::-1]
    assert np.array_equal(read_image(flipped).numpy(), flipped.transpose(2, 0, 1))


def test_load_pixels_leaves_floats_as_they_are():
    assert load_pixels(np.array([[0.0, 1.0]]), guess_range=False).flatten().tolist() == [0, 1]
    assert load_pixels(np.array([[0.0, 999.0]]), guess_range=False).flatten().tolist() == [0, 999]
    with pytest.raises(ImageError, match="NaN"):
        load_pixels(np.array([[0.0, np.nan]]), guess_range=False)


def test_masks_of_every_kind(tmp_path):
    expected = np.zeros((20, 30), bool)
    expected[5:, 10:] = True
    path = tmp_path / "mask.png"
    Image.fromarray(expected.astype(np.uint8) * 255).save(path)
    rgba = np.zeros((20, 30, 4), np.uint8)
    rgba[expected] = (0, 9, 0, 255)
    forms = [
        path,
        str(path),
        Image.open(path).convert("1"),
        Image.fromarray(rgba),
        expected,
        torch.from_numpy(expected),
        expected.astype(np.int64) * 1000,
        expected.astype(np.float32) * 0.5,
        expected[..., None],
        -expected.astype(np.int32),
    ]
    for form in forms:
        mask = read_mask(form, (20, 30))
        assert mask.dtype == torch.bool
        assert np.array_equal(mask.numpy(), expected)


def test_mask_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"\(20, 30\).*\(40, 60\).*image's size"):
        read_mask(np.ones((20, 30)), (40, 60))
    with pytest.raises(ImageError, match="NaN"):
        read_mask(np.full((2, 2), np.nan), (2, 2))
