"""SuperPoint's image processor: single images in, keypoints in pixels of the original images out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from keyglue.base.errors import ImageError, InputError
from keyglue.base.outputs import SuperPointKeypointDescriptionOutput
from keyglue.images.coordinates import pixels_to_relative
from keyglue.images.superpoint_processor import SuperPointImageProcessor


def test_one_image_or_a_list(assets):
    processor = SuperPointImageProcessor()
    assert processor.do_grayscale is False
    one = processor(assets / "chelsea.png", return_tensors="pt").pixel_values
    assert one.shape == (1, 3, 480, 640)
    assert not torch.equal(one[0, 0], one[0, 1])
    two = processor([assets / "brick.png", assets / "chelsea.png"], return_tensors="pt").pixel_values
    assert two.shape == (2, 3, 480, 640)
    assert torch.equal(two[1], one[0])
    gray = processor(assets / "chelsea.png", do_grayscale=True, return_tensors="pt").pixel_values
    assert torch.equal(gray[0, 0], gray[0, 1])


def test_different_sizes(assets):
    processor = SuperPointImageProcessor(size={"longest_edge": 64})
    images = [assets / "brick.png", assets / "chelsea.png"]
    inputs = processor(images, return_tensors="pt")
    assert inputs.pixel_values.shape == (2, 3, 64, 64)
    assert inputs.image_sizes.tolist() == [[64, 64], [43, 64]]
    unset = processor(images, data_format="channels_last")
    assert [item.shape for item in unset.pixel_values] == [(64, 64, 3), (43, 64, 3)]
    assert all(isinstance(item, np.ndarray) for item in unset.pixel_values)
    assert "image_sizes" not in unset
    assert np.array_equal(unset.pixel_values[1].transpose(2, 0, 1), inputs.pixel_values[1, :, :43].numpy())


def test_bad_inputs(assets):
    processor = SuperPointImageProcessor()
    with pytest.raises(InputError, match="empty list"):
        processor([])
    with pytest.raises(ImageError, match="list"):
        processor([[assets / "brick.png"]])


def make_output() -> SuperPointKeypointDescriptionOutput:
    pixels = torch.tensor([[[1.5, 2.25], [63.0, 47.0]], [[3.0, 4.0], [0.0, 0.0]]])
    return SuperPointKeypointDescriptionOutput(
        keypoints=pixels_to_relative(pixels, (48, 64)),
        scores=torch.tensor([[0.5, 0.25], [0.75, 0.0]]),
        descriptors=torch.eye(2).expand(2, 2, 2),
        mask=torch.tensor([[1, 1], [1, 0]], dtype=torch.int32),
    )


def test_keypoints_are_sub_pixel_in_the_original_frame():
    processor = SuperPointImageProcessor(size={"height": 48, "width": 64})
    for sizes in ([(96, 64), (48, 64)], torch.tensor([[96, 64], [48, 64]])):
        first, second = processor.post_process_keypoint_detection(make_output(), sizes)
        torch.testing.assert_close(first["keypoints"], torch.tensor([[1.5, 5.0], [63.0, 94.5]]))
        torch.testing.assert_close(second["keypoints"], torch.tensor([[3.0, 4.0]]))
        assert first["scores"].tolist() == [0.5, 0.25]
        assert second["descriptors"].tolist() == [[1.0, 0.0]]
    with pytest.raises(InputError, match="target_sizes"):
        processor.post_process_keypoint_detection(make_output(), [(96, 64)])
