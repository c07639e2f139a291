"""Keypoints between pixels: blobs are found where they are, in scores and in the image."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from keyglue import SuperPointConfig, SuperPointForKeypointDetection
from keyglue.base.errors import ConfigError
from keyglue.keypoints.nms import select_keypoints, suppress_non_maxima
from keyglue.keypoints.refinement import det_hessian, refine_keypoints

CENTRES = torch.tensor([[20.3, 11.8], [35.0, 30.5], [8.45, 25.2]])


def blobs(centres: Tensor, sigma: float = 1.0, size: tuple[int, int] = (40, 50)) -> Tensor:
    ys, xs = torch.meshgrid(torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij")
    image = torch.zeros(size)
    for x, y in centres:
        image += torch.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * sigma**2))
    return image


def test_scores_give_the_centre_of_a_peak_between_pixels():
    scores = blobs(CENTRES)
    points, _ = select_keypoints(suppress_non_maxima(scores[None], 4)[0], 0.1, 4, 3)
    refined = refine_keypoints(points, scores, 3)
    assert torch.cdist(refined, CENTRES).amin(dim=1).max() < 0.02
    assert torch.equal(refine_keypoints(points, scores, 0), points)
    at_edge = refine_keypoints(torch.tensor([[0.0, 0.0]]), torch.ones(5, 5), 2)
    assert torch.allclose(at_edge, torch.tensor([[1.0, 1.0]]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_image_gives_the_centre_of_a_blob_that_the_scores_miss(sign):
    image = 0.5 + 0.3 * sign * blobs(CENTRES, sigma=2.0)
    points = torch.tensor([[22.0, 10.0], [33.0, 31.0], [9.0, 27.0]])
    scores = torch.zeros(40, 48)
    scores[points[:, 1].long(), points[:, 0].long()] = 1
    assert torch.equal(refine_keypoints(points, scores, 3), points)
    assert torch.equal(refine_keypoints(points, scores, 3, image, 0.0), points)
    refined = refine_keypoints(points, scores, 3, image, 2.0)
    assert (refined - CENTRES).norm(dim=1).max() < 0.05
    # No blob is within a pixel of the first two.
    near = refine_keypoints(points, scores, 1, image, 2.0)
    assert torch.equal(near[:2], points[:2])


def test_of_two_keypoints_the_nearer_one_goes_to_a_peak():
    image = blobs(torch.tensor([[20.0, 20.0]]), sigma=2.0)
    points = torch.tensor([[17.0, 20.0], [21.0, 20.0]])
    scores = torch.zeros(40, 50)
    scores[points[:, 1].long(), points[:, 0].long()] = 1
    refined = refine_keypoints(points, scores, 3, image, 2.0)
    torch.testing.assert_close(refined, torch.tensor([[17.0, 20.0], [20.0, 20.0]]), atol=0.01, rtol=0)


def test_peaks_outside_the_mask_do_not_count():
    image = blobs(CENTRES, sigma=2.0)
    points, scores = torch.tensor([[22.0, 10.0], [33.0, 31.0]]), torch.zeros(40, 48)
    scores[points[:, 1].long(), points[:, 0].long()] = 1
    mask = torch.ones(40, 50, dtype=torch.uint8)
    mask[:, :21] = 0
    refined = refine_keypoints(points, scores, 3, image, 2.0, mask)
    assert torch.equal(refined[0], points[0])
    assert (refined[1] - CENTRES[1]).norm() < 0.05


@pytest.mark.parametrize("image", [torch.zeros(40, 50), torch.full((40, 50), torch.nan), torch.rand(2, 50)])
def test_an_image_without_peaks_changes_nothing(image):
    points, scores = torch.tensor([[17.0, 1.0]]), torch.zeros(2, 50)
    scores[1, 17] = 1
    assert torch.equal(refine_keypoints(points, scores, 3, image, 2.0), points)
    none = points[:0]
    assert torch.equal(refine_keypoints(none, scores, 3, image, 2.0), none)


def test_keypoints_at_the_edge_stay_in_the_image():
    generator = torch.Generator().manual_seed(0)
    image, scores = torch.rand(40, 50, generator=generator), torch.rand(40, 48, generator=generator)
    ys, xs = torch.meshgrid(torch.arange(40.0), torch.arange(48.0), indexing="ij")
    points = torch.stack([xs, ys], dim=-1).flatten(0, 1)
    refined = refine_keypoints(points, scores, 3, image, 1.0)
    assert (refined >= 0).all()
    assert (refined <= torch.tensor([49.0, 39.0])).all()
    assert (refined - points).abs().max() <= 3.5
    moved = refined[(refined - refine_keypoints(points, scores, 3)).abs().amax(dim=1) > 0]
    assert len(moved) > 50
    assert torch.pdist(moved).min() > 0.01


def test_determinant_of_the_hessian_is_that_of_a_blurred_blob():
    """At the centre of a Gaussian of size s blurred by t: (A s^2 / (s^2 + t^2)^2)^2, times t^4."""
    amplitude, s, t = 0.5, 3.0, 1.5
    found = det_hessian(0.3 + amplitude * blobs(torch.tensor([[25.0, 20.0]]), sigma=s)[None, None], t)[0, 20, 25]
    expected = t**4 * (amplitude * s**2 / (s**2 + t**2) ** 2) ** 2
    assert math.isclose(float(found), expected, rel_tol=0.03)


@torch.inference_mode()
def test_the_detector_refines_on_its_image(photographs):
    detector = SuperPointForKeypointDetection.from_pretrained(refinement_radius=3, refinement_sigma=2.0)
    plain = SuperPointForKeypointDetection.from_pretrained(refinement_radius=3, refinement_sigma=0.0)
    image = photographs["coffee"]
    refined, before = detector.extract(image), plain.extract(image)
    assert torch.equal(refined.keypoint_scores, before.keypoint_scores)
    moved = (refined.keypoints - before.keypoints).norm(dim=1)
    assert (moved > 0).double().mean() > 0.3
    pixels = SuperPointForKeypointDetection.from_pretrained(refinement_radius=0, refinement_sigma=2.0).extract(image)
    assert torch.equal(pixels.keypoints, pixels.keypoints.round())


def test_a_negative_sigma_is_refused():
    with pytest.raises(ConfigError, match="refinement_sigma"):
        SuperPointConfig(refinement_sigma=-1.0)
