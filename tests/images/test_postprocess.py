"""A model's output becomes matches in pixels of the original images, and pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import InputError
from keyglue.base.outputs import LightGlueKeypointMatchingOutput
from keyglue.images.coordinates import pixels_to_relative, resize_keypoints
from keyglue.images.processor import LightGlueImageProcessor

LONGEST = {"longest_edge": 64}


@pytest.fixture(scope="module")
def pair(assets) -> list[Image.Image]:
    return [Image.open(assets / "motorcycle_left.png"), Image.open(assets / "rocket.jpg")]


@pytest.fixture(scope="module")
def processor() -> LightGlueImageProcessor:
    return LightGlueImageProcessor(size={"height": 48, "width": 64})


def make_output(**changes) -> LightGlueKeypointMatchingOutput:
    """Two pairs; three keypoints at most. Pair 0: 0 <-> 1, 2 <-> 0. Pair 1: one match, one keypoint each."""
    pixels = torch.tensor(
        [
            [[[0.0, 0.0], [10.5, 20.25], [63.0, 47.0]], [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]],
            [[[5.0, 6.0], [0.0, 0.0], [0.0, 0.0]], [[7.0, 8.0], [0.0, 0.0], [0.0, 0.0]]],
        ]
    )
    values = {
        "matches": torch.tensor([[[1, -1, 0], [2, 0, -1]], [[0, -1, -1], [0, -1, -1]]]),
        "matching_scores": torch.tensor([[[0.5, 0.4, 0.9], [0.9, 0.5, 0.0]], [[0.3, 0.0, 0.0], [0.3, 0.0, 0.0]]]),
        "keypoints": pixels_to_relative(pixels, (48, 64)),
        "mask": torch.tensor([[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 0, 0]]], dtype=torch.int32),
        "prune": torch.ones(2, 2, 3, dtype=torch.int64),
    }
    return LightGlueKeypointMatchingOutput(**{**values, **changes})


def test_keypoints_are_sub_pixel_in_the_original_frame(processor):
    sizes = [[(48, 64), (96, 64)], [(48, 64), (48, 64)]]
    first, second = processor.post_process_keypoint_matching(make_output(), sizes)
    assert set(first) == {"keypoints0", "keypoints1", "matching_scores", "matches"}
    assert first["keypoints0"].dtype == torch.float32
    torch.testing.assert_close(first["keypoints0"], torch.tensor([[0.0, 0.0], [63.0, 47.0]]))
    # (y + 0.5) * 2 - 0.5: half a pixel more than y * 2
    torch.testing.assert_close(first["keypoints1"], torch.tensor([[3.0, 8.5], [1.0, 4.5]]))
    assert first["matching_scores"].tolist() == pytest.approx([0.5, 0.9])
    assert first["matches"].tolist() == [[0, 1], [2, 0]]
    assert second["matches"].tolist() == [[0, 0]]
    torch.testing.assert_close(second["keypoints0"], torch.tensor([[5.0, 6.0]]))


def test_a_known_transform_comes_out_exactly(processor):
    """A point of a picture of any size, seen squeezed, comes back where it was."""
    generator = torch.Generator().manual_seed(0)
    originals = [[(500, 741), (37, 1000)]]
    points = torch.rand(1, 2, 50, 2, generator=generator) * torch.tensor([36.0, 36.0])
    seen = torch.stack([resize_keypoints(points[0, i], originals[0][i], (48, 64)) for i in range(2)])[None]
    index = torch.arange(50).expand(1, 2, 50)
    output = make_output(
        keypoints=pixels_to_relative(seen, (48, 64)),
        matches=index,
        matching_scores=torch.ones(1, 2, 50),
        mask=torch.ones(1, 2, 50),
    )
    (result,) = processor.post_process_keypoint_matching(output, originals)
    assert (result["keypoints0"] - points[0, 0]).abs().max() < 1e-3
    assert (result["keypoints1"] - points[0, 1]).abs().max() < 1e-3


def test_the_size_that_the_model_saw_comes_from_the_output():
    """Padded batches: relative keypoints refer to each image's content."""
    processor = LightGlueImageProcessor(size=LONGEST)
    seen = torch.tensor([[[43, 64], [64, 64]], [[64, 64], [64, 64]]])
    output = make_output(image_sizes=seen)
    sizes = [[(86, 128), (64, 64)], [(64, 64), (64, 64)]]
    first, _ = processor.post_process_keypoint_matching(output, sizes)
    expected = resize_keypoints(output.keypoints[0, 0] * torch.tensor([64, 43]), (43, 64), (86, 128))[[0, 2]]
    torch.testing.assert_close(first["keypoints0"], expected)
    without, _ = processor.post_process_keypoint_matching(make_output(), sizes)
    torch.testing.assert_close(without["keypoints0"], expected)  # the processor's rule gives the same size


def test_without_resizing_the_model_saw_the_original():
    processor = LightGlueImageProcessor(do_resize=False)
    first, _ = processor.post_process_keypoint_matching(make_output(), torch.full((2, 2, 2), 100))
    torch.testing.assert_close(first["keypoints0"][1], torch.tensor([63 / 64 * 100, 47 / 48 * 100]))


def test_threshold(processor):
    sizes = torch.tensor([[[48, 64], [48, 64]]] * 2)
    first, second = processor.post_process_keypoint_matching(make_output(), sizes, threshold=0.5)
    assert first["matches"].tolist() == [[2, 0]]
    assert second["keypoints0"].shape == (0, 2)
    assert second["matches"].shape == (0, 2)


def test_every_form_of_target_sizes(processor):
    nested = [[(48, 64), (96, 64)], [(48, 64), (48, 64)]]
    tensor = torch.tensor(nested)
    forms = [
        nested,
        tensor,
        tensor.float(),
        list(tensor),
        [tuple(row) for row in tensor],
        tensor.numpy(),
        tuple(nested),
    ]
    expected = processor.post_process_keypoint_matching(make_output(), nested)
    for form in forms:
        for result, reference in zip(
            processor.post_process_keypoint_matching(make_output(), form), expected, strict=True
        ):
            assert torch.equal(result["keypoints1"], reference["keypoints1"])


@pytest.mark.parametrize(
    "sizes",
    [
        [(48, 64)],
        [[(48, 64), (48, 64)]],
        [[(48, 64), (48, 64)]] * 3,
        torch.ones(2, 2),
        torch.ones(2, 2, 3),
        [[(48, 64), (48, 64)], [(48, 64)]],
        [[(48, 64), (48, 64)], [(0, 64), (48, 64)]],
        None,
        "sizes",
    ],
)
def test_wrong_target_sizes_are_refused(processor, sizes):
    with pytest.raises(InputError, match="target_sizes"):
        processor.post_process_keypoint_matching(make_output(), sizes)


def test_outputs_as_mapping_and_incomplete_outputs(processor):
    sizes = torch.tensor([[[48, 64], [48, 64]]] * 2)
    output = make_output()
    mapping = {name: output[name] for name in ("matches", "matching_scores", "keypoints", "mask")}
    result = processor.post_process_keypoint_matching(mapping, sizes)
    assert result[0]["matches"].tolist() == [[0, 1], [2, 0]]
    for missing in mapping:
        with pytest.raises(InputError, match=missing):
            processor.post_process_keypoint_matching({k: v for k, v in mapping.items() if k != missing}, sizes)
    with pytest.raises(InputError, match="return_dict"):
        processor.post_process_keypoint_matching(output.to_tuple(), sizes)


def test_no_keypoints_at_all(processor):
    output = make_output(
        keypoints=torch.zeros(1, 2, 0, 2),
        matches=torch.zeros(1, 2, 0, dtype=torch.int64),
        matching_scores=torch.zeros(1, 2, 0),
        mask=torch.zeros(1, 2, 0),
    )
    (result,) = processor.post_process_keypoint_matching(output, [[(48, 64), (48, 64)]])
    assert result["keypoints0"].shape == result["keypoints1"].shape == (0, 2)


def test_matches_into_padding_do_not_count(processor):
    output = make_output(matches=torch.tensor([[[2, 7, 0], [2, 0, -1]], [[1, -1, -1], [0, -1, -1]]]))
    first, second = processor.post_process_keypoint_matching(output, torch.full((2, 2, 2), 48))
    assert first["matches"].tolist() == [[2, 0]]
    assert len(second["matches"]) == 0


def test_half_precision_outputs_give_float32(processor):
    output = make_output(keypoints=make_output().keypoints.to(torch.float16))
    first, _ = processor.post_process_keypoint_matching(output, torch.full((2, 2, 2), 48))
    assert first["keypoints0"].dtype == torch.float32


def test_visualize_any_image(assets, pair, processor):
    images = [[pair[0], assets / "brick.png"], [np.asarray(pair[1]), Image.open(assets / "grass.png")]]
    results = processor.post_process_keypoint_matching(make_output(), torch.full((2, 2, 2), 400))
    pictures = processor.visualize_keypoint_matching(images, results)
    assert len(pictures) == 2
    assert all(picture.mode == "RGB" for picture in pictures)
    one = processor.visualize_keypoint_matching(images[0], results[:1])
    assert np.array_equal(np.asarray(one[0]), np.asarray(pictures[0]))
    with pytest.raises(InputError, match="2 image pairs and outputs of 1"):
        processor.visualize_keypoint_matching(images, results[:1])


def test_plot_takes_raw_outputs_and_warns(assets, pair, processor):
    images = [[pair[0], assets / "brick.png"], [pair[1], pair[1]]]
    with pytest.warns(FutureWarning, match="visualize_keypoint_matching"):
        plotted = processor.plot_keypoint_matching(images, make_output())
    sizes = [[(500, 741), (512, 512)], [(427, 640), (427, 640)]]
    expected = processor.visualize_keypoint_matching(
        images, processor.post_process_keypoint_matching(make_output(), sizes)
    )
    for left, right in zip(plotted, expected, strict=True):
        assert np.array_equal(np.asarray(left), np.asarray(right))
