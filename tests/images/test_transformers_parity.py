"""The same pixels as transformers' Pillow processors, and its outputs read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.images.processor import LightGlueImageProcessor
from keyglue.images.superpoint_processor import SuperPointImageProcessor

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def theirs():
    from transformers.models.lightglue import image_processing_pil_lightglue as lightglue
    from transformers.models.superpoint import image_processing_pil_superpoint as superpoint

    return {"lightglue": lightglue.LightGlueImageProcessorPil, "superpoint": superpoint.SuperPointImageProcessorPil}


@pytest.fixture(scope="module")
def pictures(assets) -> list[Image.Image]:
    return [Image.open(assets / "motorcycle_left.png"), Image.open(assets / "rocket.jpg")]


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("do_grayscale", [True, False])
def test_pixel_values_are_bit_equal(theirs, pictures, resample, do_grayscale):
    settings = {"resample": resample, "do_grayscale": do_grayscale}
    expected = theirs["lightglue"](**settings)(pictures, return_tensors="pt").pixel_values
    values = LightGlueImageProcessor(**settings)(pictures, return_tensors="pt").pixel_values
    assert values.shape == expected.shape == (1, 2, 3, 480, 640)
    assert torch.equal(values, expected)
    expected = theirs["superpoint"](**settings)(pictures, return_tensors="pt").pixel_values
    assert torch.equal(SuperPointImageProcessor(**settings)(pictures, return_tensors="pt").pixel_values, expected)


def test_other_inputs_and_settings_are_bit_equal(theirs, pictures, assets):
    arrays = [np.array(picture) for picture in pictures]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    brick = Image.open(assets / "brick.png")
    for images, settings in (
        (arrays, {}),
        (tensors, {}),
        ([pictures, pictures[::-1]], {}),
        ([pictures[0], pictures[0]], {"do_resize": False}),
        ([pictures[0], pictures[0]], {"size": {"shortest_edge": 200}}),
        (pictures, {"rescale_factor": 1 / 127}),
        ([brick.convert("RGB")] * 2, {}),
    ):
        expected = theirs["lightglue"](**settings)(images, return_tensors="np").pixel_values
        values = LightGlueImageProcessor(**settings)(images, return_tensors="np").pixel_values
        assert np.array_equal(values, expected), settings


def test_floats_are_equal_but_for_their_rounding_to_8_bits(theirs, pictures):
    floats = [np.asarray(picture, np.float32) / 255 for picture in pictures]
    expected = theirs["lightglue"](do_rescale=False)(floats, return_tensors="np").pixel_values
    values = LightGlueImageProcessor(do_rescale=False)(floats, return_tensors="np").pixel_values
    # transformers cuts to 8 bits before it resizes, and rounds after each axis.
    assert np.abs(values - expected).max() < 2.1 / 255


def test_saved_settings_are_read_by_each_other(theirs, tmp_path):
    LightGlueImageProcessor(size={"height": 120, "width": 160}, resample=3).save_pretrained(tmp_path / "ours")
    loaded = theirs["lightglue"].from_pretrained(tmp_path / "ours")
    assert dict(loaded.size) == {"height": 120, "width": 160}
    assert int(loaded.resample) == 3
    theirs["lightglue"](size={"height": 120, "width": 160}, do_grayscale=False).save_pretrained(tmp_path / "theirs")
    ours = LightGlueImageProcessor.from_pretrained(tmp_path / "theirs")
    assert ours.size == {"height": 120, "width": 160}
    assert ours.do_grayscale is False
    ours.save_pretrained(tmp_path / "again")
    before = json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())
    after = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert after == before


def test_settings_files_with_every_key_that_transformers_knows():
    from transformers.processing_utils import ImagesKwargs

    foreign = {name: None for name in ImagesKwargs.__annotations__ if not hasattr(LightGlueImageProcessor(), name)}
    assert {"do_normalize", "crop_size"} <= set(foreign)
    processor = LightGlueImageProcessor.from_dict(foreign)
    assert processor.to_dict().items() >= foreign.items()


def test_size_and_enums_of_transformers_are_accepted(theirs, pictures):
    from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
    from transformers.utils import TensorType

    inputs = LightGlueImageProcessor(size=SizeDict(height=48, width=64))(
        pictures,
        resample=PILImageResampling.NEAREST,
        return_tensors=TensorType.PYTORCH,
        data_format=ChannelDimension.LAST,
    )
    assert inputs.pixel_values.shape == (1, 2, 48, 64, 3)


def test_post_processing_reads_their_output(theirs):
    from transformers.models.lightglue.modeling_lightglue import LightGlueKeypointMatchingOutput

    generator = torch.Generator().manual_seed(0)
    matches = torch.full((1, 2, 40), -1)
    order = torch.randperm(40, generator=generator)[:30]
    matches[0, 0, :30] = order
    matches[0, 1, order] = torch.arange(30)
    output = LightGlueKeypointMatchingOutput(
        matches=matches,
        matching_scores=torch.rand(1, 2, 40, generator=generator),
        keypoints=torch.rand(1, 2, 40, 2, generator=generator),
        prune=torch.ones(1, 2, 40),
        mask=torch.ones(1, 2, 40, dtype=torch.int32),
    )
    sizes = [[(500, 741), (427, 640)]]
    (expected,) = theirs["lightglue"]().post_process_keypoint_matching(output, sizes, threshold=0.2)
    (result,) = LightGlueImageProcessor().post_process_keypoint_matching(output, sizes, threshold=0.2)
    assert torch.equal(result["matching_scores"], expected["matching_scores"])  # the same matches in the same order
    assert 10 < len(expected["matching_scores"]) < 30
    for side in ("keypoints0", "keypoints1"):
        # transformers cuts to whole numbers and forgets half a pixel; ours lie within that of its answer.
        offset = result[side] - expected[side]
        assert offset.min() > -0.5
        assert offset.max() < 1.5
        assert not torch.equal(result[side], result[side].round())
