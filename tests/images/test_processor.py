"""LightGlue's image processor: pairs in, matches in pixels of the original images out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import CheckpointError, ConfigError, ImageError, InputError
from keyglue.images.batch import BatchFeature
from keyglue.images.enums import ChannelDimension, TensorType
from keyglue.images.processor import LightGlueImageProcessor
from keyglue.images.resize import to_grayscale

LONGEST = {"longest_edge": 64}


@pytest.fixture(scope="module")
def pair(assets) -> list[Image.Image]:
    return [Image.open(assets / "motorcycle_left.png"), Image.open(assets / "rocket.jpg")]


@pytest.fixture(scope="module")
def processor() -> LightGlueImageProcessor:
    return LightGlueImageProcessor(size={"height": 48, "width": 64})


# ------------------------------------------------------------------------------------------------ inputs


def test_defaults_are_the_documented_ones(pair):
    inputs = LightGlueImageProcessor()(pair, return_tensors="pt")
    assert isinstance(inputs, BatchFeature)
    assert list(inputs) == ["pixel_values"]
    assert inputs.pixel_values.shape == (1, 2, 3, 480, 640)
    assert inputs.pixel_values.dtype == torch.float32
    assert 0.9 < inputs.pixel_values.max() <= 1
    assert inputs.pixel_values.min() >= 0
    assert torch.equal(inputs.pixel_values[:, :, 0], inputs.pixel_values[:, :, 2])
    settings = LightGlueImageProcessor().to_dict()
    assert settings == {
        "do_resize": True,
        "size": {"height": 480, "width": 640},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_grayscale": True,
        "image_processor_type": "LightGlueImageProcessor",
    }


def test_every_form_of_a_pair_gives_the_same_pixels(assets, pair, processor):
    expected = processor(pair, return_tensors="pt").pixel_values
    arrays = [np.array(picture) for picture in pair]
    forms = {
        "tuple": tuple(pair),
        "list of pairs": [pair],
        "tuple of tuples": (tuple(pair),),
        "arrays": arrays,
        "tensors": [torch.from_numpy(array).permute(2, 0, 1) for array in arrays],
        "floats 0..255": [array.astype(np.float32) for array in arrays],
        "16 bit": [array.astype(np.uint16) * 257 for array in arrays],
        "4 channels": [np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]) for array in arrays],
        "paths": [assets / "motorcycle_left.png", str(assets / "rocket.jpg")],
        "mixed": [pair[0], str(assets / "rocket.jpg")],
        "file URL": [(assets / "motorcycle_left.png").resolve().as_uri(), pair[1]],
    }
    for name, form in forms.items():
        assert torch.equal(processor(form, return_tensors="pt").pixel_values, expected), name
    batch = processor([pair, pair[::-1]], return_tensors="pt").pixel_values
    assert batch.shape == (2, 2, 3, 48, 64)
    assert torch.equal(batch[0], expected[0])
    assert torch.equal(batch[1], expected[0].flip(0))


def test_floats_0_to_1_with_do_rescale_false(pair, processor):
    expected = processor(pair, return_tensors="pt").pixel_values
    floats = [np.asarray(picture, np.float32) / 255 for picture in pair]
    got = processor(floats, do_rescale=False, return_tensors="pt").pixel_values
    assert (got - expected).abs().max() < 1.01 / 255  # floats are not rounded to 8 bits on the way
    # The range of floats is never guessed: do_rescale decides.
    assert processor(floats, return_tensors="pt").pixel_values.max() < 2 / 255


def test_gray_and_colour_images_mix(assets, pair, processor):
    values = processor([assets / "brick.png", pair[0]], do_grayscale=False, return_tensors="pt").pixel_values
    assert values.shape == (1, 2, 3, 48, 64)
    assert torch.equal(values[0, 0, 0], values[0, 0, 1])
    assert not torch.equal(values[0, 1, 0], values[0, 1, 1])
    gray = processor([assets / "brick.png", pair[0]], return_tensors="pt").pixel_values
    assert torch.equal(gray[0, 0], values[0, 0])
    assert torch.equal(gray[0, 1, :1], to_grayscale(values[0, 1]))


def test_arguments_of_one_call_override_the_settings(pair, processor):
    values = processor(
        pair, size=LONGEST, resample="nearest", rescale_factor=1, do_grayscale=False, return_tensors="np"
    )
    assert values.pixel_values.shape == (1, 2, 3, 43, 64)
    assert (values.pixel_values == np.rint(values.pixel_values)).all()
    assert processor(pair[:1] * 2, do_resize=False, return_tensors="np").pixel_values.shape == (1, 2, 3, 500, 741)
    assert processor.size == {"height": 48, "width": 64}


def test_images_of_different_sizes_are_padded_and_their_sizes_told(assets, pair):
    processor = LightGlueImageProcessor(size=LONGEST)
    square = assets / "brick.png"
    inputs = processor([[pair[0], square], [square, square]], return_tensors="pt")
    assert inputs.pixel_values.shape == (2, 2, 3, 64, 64)
    assert inputs.image_sizes.dtype == torch.int64
    assert inputs.image_sizes.tolist() == [[[43, 64], [64, 64]], [[64, 64], [64, 64]]]
    assert (inputs.pixel_values[0, 0, :, 43:] == 0).all()
    alone = processor([pair[0], pair[0]], return_tensors="pt")
    assert "image_sizes" not in alone
    assert torch.equal(inputs.pixel_values[0, 0, :, :43], alone.pixel_values[0, 0])


def test_unset_return_tensors_gives_arrays_a_pair(assets, pair):
    processor = LightGlueImageProcessor(size=LONGEST)
    square = assets / "brick.png"
    inputs = processor([[pair[0], pair[0]], [square, square]])
    assert [type(item) for item in inputs.pixel_values] == [np.ndarray, np.ndarray]
    assert [item.shape for item in inputs.pixel_values] == [(2, 3, 43, 64), (2, 3, 64, 64)]
    assert "image_sizes" not in inputs
    mixed = processor([[pair[0], square], [square, square]])
    assert mixed.pixel_values[0].shape == (2, 3, 64, 64)
    assert [item.tolist() for item in mixed.image_sizes] == [[[43, 64], [64, 64]], [[64, 64], [64, 64]]]


@pytest.mark.parametrize("kind", ["np", TensorType.NUMPY])
def test_layouts(pair, processor, kind):
    first = processor(pair, return_tensors=kind).pixel_values
    last = processor(pair, return_tensors=kind, data_format=ChannelDimension.LAST).pixel_values
    assert last.shape == (1, 2, 48, 64, 3)
    assert np.array_equal(np.moveaxis(last, -1, -3), first)
    assert processor(pair, data_format="channels_last").pixel_values[0].shape == (2, 48, 64, 3)
    arrays = [np.asarray(picture) for picture in pair]
    assert processor(arrays, return_tensors=kind, data_format=None).pixel_values.shape == (1, 2, 48, 64, 3)
    flipped = [array.transpose(2, 0, 1) for array in arrays]
    unset = processor(flipped, return_tensors=kind, data_format=None, input_data_format="channels_first")
    assert np.array_equal(unset.pixel_values, first)
    planes = [array[..., 0] for array in arrays]
    assert processor(planes, return_tensors=kind, input_data_format="none").pixel_values.shape == first.shape
    with pytest.raises(ImageError, match="channels_first"):
        processor(arrays, input_data_format="channels_first")
    with pytest.raises(InputError, match="data_format"):
        processor(pair, data_format="none")


PICTURE = Image.new("RGB", (8, 6))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PICTURE, "single Image"),
        ("a.jpg", "single str"),
        (np.zeros((2, 6, 8, 3)), "single ndarray"),
        ([], "empty list"),
        ([PICTURE], "list of 1"),
        ([PICTURE] * 3, "list of 3"),
        ([[PICTURE] * 3], "item 0"),
        ([[PICTURE, PICTURE], [PICTURE]], "item 1"),
        ([[PICTURE, PICTURE], PICTURE], "item 1"),
        ([[[PICTURE, PICTURE]]], "item 0 .* list"),
        ([[PICTURE, PICTURE], []], "holds nothing"),
        ([PICTURE, None], "item 0"),
        (None, "NoneType"),
        ({"a": PICTURE, "b": PICTURE}, "dict"),
    ],
)
def test_what_is_no_pair_is_refused(processor, images, message):
    with pytest.raises(InputError, match=message) as caught:
        processor(images)
    assert "[image0, image1]" in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"do_resize": "yes"}, "do_resize"),
        ({"size": {"height": 0, "width": 4}}, "size"),
        ({"size": 480}, "size"),
        ({"resample": "sharp"}, "filter"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
        ({"do_greyscale": True}, "do_greyscale"),
        ({"return_tensors": "torch"}, "tensor type"),
    ],
)
def test_impossible_arguments_are_refused(processor, kwargs, message):
    with pytest.raises(InputError, match=message):
        processor([PICTURE, PICTURE], **kwargs)


def test_arguments_of_others_that_switch_something_off_are_fine(processor):
    assert processor([PICTURE, PICTURE], do_normalize=False, do_convert_rgb=True, device=None)


def test_bad_values_are_refused(processor):
    good = np.zeros((6, 8), np.float32)
    for bad, message in ((np.full((6, 8), np.nan), "NaN"), (np.full((6, 8), -1.0), "negative")):
        for do_rescale in (True, False):
            with pytest.raises(ImageError, match=message):
                processor([good, bad], do_rescale=do_rescale)


def test_exif_rotated_files_are_upright(tmp_path, processor):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as picture:
        inputs = processor([tmp_path / "a.jpg", picture], do_resize=False, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 2, 3, 40, 20)


def test_resize_method(assets):
    processor = LightGlueImageProcessor()
    picture = Image.open(assets / "chelsea.png")
    array = np.asarray(picture)
    expected = np.asarray(picture.resize((60, 40), Image.Resampling.BILINEAR))
    size = {"height": 40, "width": 60}
    assert np.array_equal(processor.resize(array, size), expected)
    first = processor.resize(array, size, data_format="channels_first")
    assert np.array_equal(first, expected.transpose(2, 0, 1))
    assert np.array_equal(processor.resize(array.transpose(2, 0, 1), size, input_data_format="channels_first"), first)
    plane = processor.resize(array[..., 0], size, input_data_format="none")
    assert np.array_equal(plane, expected[..., 0])
    floats = processor.resize(array / 255, size, resample="box")
    assert floats.dtype == np.float64
    assert floats.max() <= 1
    wide = processor.resize(array.astype(np.uint16) * 257, {"longest_edge": 100})
    assert wide.dtype == np.uint16
    assert wide.shape == (67, 100, 3)
    with pytest.raises(InputError):
        processor.resize(array, size, data_format="none")


# ------------------------------------------------------------------------------------------------ files


def test_saving_and_loading(tmp_path):
    processor = LightGlueImageProcessor(size=LONGEST, resample="bicubic", do_grayscale=False, somebody="else")
    processor.save_pretrained(tmp_path / "new")
    content = json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())
    assert content["resample"] == 3
    assert content["somebody"] == "else"
    assert content["image_processor_type"] == "LightGlueImageProcessor"
    for place in (tmp_path / "new", tmp_path / "new" / "preprocessor_config.json"):
        loaded = LightGlueImageProcessor.from_pretrained(place, trust_remote_code=False, use_fast=True)
        assert loaded.to_dict() == processor.to_dict() == json.loads(loaded.to_json_string())
    changed = LightGlueImageProcessor.from_pretrained(tmp_path / "new", size={"height": 32, "width": 32})
    assert changed.size == {"height": 32, "width": 32}
    assert changed.do_grayscale is False
    assert "bicubic" not in repr(changed)
    assert "LightGlueImageProcessor" in repr(changed)


def test_loading_failures(tmp_path):
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        LightGlueImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{broken")
    with pytest.raises(ConfigError, match="JSON"):
        LightGlueImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 3}}')
    with pytest.raises(InputError, match="size"):
        LightGlueImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="do_grayscale"):
        LightGlueImageProcessor(do_greyscale=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        LightGlueImageProcessor().save_pretrained(tmp_path / "file")
