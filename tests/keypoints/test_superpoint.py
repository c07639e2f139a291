"""SuperPoint: suppression, borders, masks, padding, sizes, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue import ConfigError, InputError, SuperPointConfig, SuperPointForKeypointDetection
from keyglue.base.native import kernels
from keyglue.keypoints.nms import select_keypoints, suppress_non_maxima, window_maximum


@pytest.fixture(scope="module", params=["plain", "compiled"])
def detector(small, request):
    """The bundled detector, without and with compiled kernels where these are installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYGLUE_ISA", "off" if request.param == "plain" else "")
        if request.param == "compiled" and kernels(torch.float32) is None:
            pytest.skip("there are no compiled kernels here")
        yield small.keypoint_detector


def slow_suppression(scores: torch.Tensor, radius: int) -> torch.Tensor:
    """Kept points by the definition, pixel by pixel, with two rounds of recovery."""
    height, width = scores.shape

    def window(array, y, x):
        return array[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]

    kept = torch.zeros_like(scores, dtype=torch.bool)
    for round_ in range(3):
        reached = torch.tensor([[bool(window(kept, y, x).any()) for x in range(width)] for y in range(height)])
        rest = scores if round_ == 0 else scores.masked_fill(reached, 0)
        best = torch.tensor(
            [[bool(rest[y, x] == window(rest, y, x).max()) for x in range(width)] for y in range(height)]
        )
        kept = best if round_ == 0 else kept | (best & ~reached)
    return scores.masked_fill(~kept, 0)


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(3, 14), st.integers(3, 14))
@settings(max_examples=25, deadline=None)
def test_suppression_is_its_definition(seed, radius, height, width):
    scores = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(suppress_non_maxima(scores[None], radius)[0], slow_suppression(scores, radius))


def test_window_maximum_is_the_dense_one():
    scores = torch.rand(2, 20, 31, generator=torch.Generator().manual_seed(0))
    dense = torch.nn.functional.max_pool2d(scores[:, None], 9, stride=1, padding=4)[:, 0]
    assert torch.equal(window_maximum(scores, 4), dense)


def test_selection_cuts_to_the_best_and_else_keeps_reading_order():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.7]])
    points, values = select_keypoints(scores, 0.15, 0, -1)
    assert points.tolist() == [[1, 0], [0, 1], [1, 1], [2, 1]]
    points, values = select_keypoints(scores, 0.15, 0, 2)
    assert points.tolist() == [[1, 0], [2, 1]]
    assert values.tolist() == pytest.approx([0.9, 0.7])
    assert len(select_keypoints(scores, 0.15, 0, 0)[0]) == 0
    assert len(select_keypoints(scores, 0.15, 5, -1)[0]) == 0


@torch.inference_mode()
def test_no_two_keypoints_within_the_radius(photographs):
    whole = SuperPointForKeypointDetection.from_pretrained("keyglue-small", refinement_radius=0)
    points = whole.extract(photographs["coffee"]).keypoints
    distance = (points[:, None] - points[None]).abs().amax(dim=-1)
    distance.fill_diagonal_(100)
    assert distance.min() > whole.config.nms_radius


@torch.inference_mode()
def test_padded_images_give_what_they_give_alone(detector, photographs):
    images = [photographs["astronaut"], photographs["chelsea"], photographs["rocket"][:, :101, :77]]
    batch = torch.rand(3, 1, 256, 320, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(3, 256, 320)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = 1
    sizes = torch.tensor([image.shape[1:] for image in images])
    out = detector(batch, image_sizes=sizes)
    by_mask = detector(batch, pixel_mask=mask)
    assert torch.equal(out.keypoints, by_mask.keypoints)
    for row, image in enumerate(images):
        alone = detector.extract(image)
        count = len(alone)
        assert int(out.mask[row].sum()) == count
        size = torch.tensor([image.shape[2], image.shape[1]])
        torch.testing.assert_close(out.keypoints[row, :count] * size, alone.keypoints, atol=1e-3, rtol=0)
        torch.testing.assert_close(out.descriptors[row, :count], alone.descriptors, atol=1e-5, rtol=0)
    states = detector(batch, image_sizes=sizes, output_hidden_states=True).hidden_states
    assert [tuple(state.shape[-2:]) for state in states] == [(128, 160), (64, 80), (32, 40), (32, 40)]


@torch.inference_mode()
def test_mask_keeps_keypoints_out_and_lets_their_neighbours_in(detector, photographs):
    image = photographs["coffee"]
    mask = torch.zeros(image.shape[1:], dtype=torch.bool)
    mask[:, 100:] = True
    found = detector.extract(image, mask=mask)
    assert len(found) > 50
    x, y = found.keypoints.round().long().unbind(-1)
    assert mask[y, x].all()


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (8, 8), (9, 17), (640, 8)])
@torch.inference_mode()
def test_tiny_and_narrow_images(detector, size):
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    found = detector.extract(image)
    assert found.descriptors.shape == (len(found), 256)
    out = detector(image[None].expand(2, -1, -1, -1))
    assert out.keypoints.shape == (2, len(found), 2)


@torch.inference_mode()
def test_flat_images_are_no_problem(detector):
    out = detector(torch.stack([torch.zeros(1, 64, 64), torch.ones(1, 64, 64)]))
    assert torch.isfinite(out.descriptors).all()


@torch.inference_mode()
def test_colour_is_seen_as_brightness(detector, photographs):
    gray = photographs["coffee"]
    assert torch.equal(detector.extract(gray).keypoints, detector.extract(gray.expand(3, -1, -1)).keypoints)
    colour = gray.repeat(3, 1, 1) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    luminance = (colour * torch.tensor([0.2989, 0.5870, 0.1140])[:, None, None]).sum(0, keepdim=True)
    assert torch.equal(detector.extract(colour).keypoints, detector.extract(luminance).keypoints)


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (torch.rand(1, 2, 64, 64), "C = 1 or 3"),
        (torch.rand(64, 64), "C = 1 or 3"),
        (torch.zeros(1, 1, 64, 64, dtype=torch.uint8), "floating point"),
        (torch.full((1, 1, 64, 64), float("nan")), "NaN"),
        (torch.full((1, 1, 64, 64), float("inf")), "infinite"),
    ],
)
def test_bad_pixels_are_refused(detector, pixels, text):
    with pytest.raises(InputError, match=text):
        detector(pixels)


def test_bad_sizes_and_labels_are_refused(detector):
    pixels = torch.rand(2, 1, 64, 64)
    with pytest.raises(InputError, match="does not fit"):
        detector(pixels, image_sizes=torch.tensor([[64, 65], [64, 64]]))
    with pytest.raises(InputError, match="image_sizes"):
        detector(pixels, image_sizes=torch.tensor([[64, 64]]))
    mask = torch.ones(2, 64, 64)
    mask[0, 5, 5] = 0
    with pytest.raises(InputError, match="rectangle"):
        detector(pixels, pixel_mask=mask)
    with pytest.raises(InputError, match="labels"):
        detector(pixels, labels=torch.zeros(2))
    with pytest.raises(InputError, match="image's size"):
        detector.extract(pixels[0], mask=torch.ones(3, 3))


@pytest.mark.parametrize(
    "values",
    [
        {"keypoint_decoder_dim": 64},
        {"encoder_hidden_sizes": []},
        {"encoder_hidden_sizes": [64, "a"]},
        {"keypoint_threshold": float("nan")},
        {"keypoint_threshold": -0.1},
        {"max_keypoints": -2},
        {"max_keypoints": 1.5},
        {"nms_radius": -1},
        {"hf_compatible": "yes"},
        {"nms_radios": 3},
    ],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        SuperPointConfig(**values)


def test_output_reads_as_tuple_and_mapping(detector, photographs):
    pixels = photographs["chelsea"][None]
    with torch.inference_mode():
        out = detector(pixels)
        plain = detector(pixels, return_dict=False)
    assert list(out) == ["keypoints", "scores", "descriptors", "mask"]
    assert torch.equal(out["keypoints"], out[0])
    assert torch.equal(out.keypoints, plain[0])
    assert len(plain) == 4


def test_random_weights_come_from_the_seed():
    torch.manual_seed(3)
    first = SuperPointForKeypointDetection(SuperPointConfig())
    torch.manual_seed(3)
    second = SuperPointForKeypointDetection(SuperPointConfig())
    assert torch.equal(first.encoder.conv_blocks[0].conv_a.weight, second.encoder.conv_blocks[0].conv_a.weight)
    assert first.num_parameters() == 1_300_865


@torch.inference_mode()
def test_refined_keypoints_stay_near_their_pixel(small, photographs):
    detector = small.keypoint_detector
    assert detector.config.refinement_radius > 0, "the bundled model refines"
    refined = detector.extract(photographs["coffee"])
    whole = SuperPointForKeypointDetection.from_pretrained("keyglue-small", refinement_radius=0)
    pixels = whole.extract(photographs["coffee"])
    assert torch.equal(pixels.keypoints, pixels.keypoints.round())
    assert torch.equal(refined.keypoint_scores, pixels.keypoint_scores)
    shift = (refined.keypoints - pixels.keypoints).abs()
    assert 0 < shift.mean() < 1.5
    assert shift.max() <= detector.config.refinement_radius + 0.5
