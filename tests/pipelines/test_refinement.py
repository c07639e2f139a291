"""Matches refined on photographs of which it is known where things are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import keyglue
from keyglue.images.read import read_image
from keyglue.images.resize import resize_image, to_grayscale
from keyglue.multiview.homography import warp_points
from keyglue.pipelines.matcher import Matcher
from keyglue.pipelines.photograph import Photograph
from keyglue.pipelines.refinement import local_warps, refine_matches
from keyglue.pipelines.views import Warp

# From pixels of the second view to pixels of the photograph: turned, sheared and seen aslant.
BACK = np.array([[1.05, 0.22, 10.0], [-0.25, 0.95, 60.0], [2e-4, -1e-4, 1.0]])


@pytest.fixture(scope="module")
def photograph(assets: Path) -> torch.Tensor:
    return to_grayscale(read_image(assets / "astronaut.png")) / 255


def views(photograph: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a photograph and what it looks like from elsewhere, in other light, both (h, w)."""
    warp = Warp(size=(360, 400), matrix=BACK)
    there, _ = warp.render(Photograph.of(photograph), resize_image)
    return photograph[0], (0.1 + 0.7 * there[0]) ** 1.2


def planted(first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points (S, 2) of the photograph at which there is something to see, and where they truly are."""
    y, x = np.mgrid[30:330:11, 30:370:11]
    points1 = np.stack([x.ravel(), y.ravel()], axis=1) + 0.25
    points0 = warp_points(BACK, points1)
    inside = ((points0 > 12) & (points0 < np.array(first.shape)[::-1] - 13)).all(axis=1)
    column, row = points0[inside].round().astype(int).T
    patches = first.unfold(0, 9, 1).unfold(1, 9, 1)[row - 4, column - 4]
    detailed = (patches.std(dim=(1, 2)) > 0.08).numpy()
    return tuple(torch.from_numpy(points[inside][detailed]).float() for points in (points0, points1))


def test_points_move_to_where_the_images_agree(photograph: torch.Tensor) -> None:
    first, second = views(photograph)
    points0, truth = planted(first)
    assert len(truth) > 150
    rough = truth + 0.7 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    found = refine_matches(first, second, points0, rough, torch.full((len(truth),), 0.8))
    before, after = (rough - truth).norm(dim=1), (found.points1 - truth).norm(dim=1)
    assert after.median() < 0.25 * before.median()
    assert (after < 0.5).float().mean() > 0.85
    assert found.alike.float().mean() > 0.97


def test_matches_of_different_things_are_told(photograph: torch.Tensor) -> None:
    first, second = views(photograph)
    points0, truth = planted(first)
    wrong = torch.arange(len(truth)) % 4 == 0
    points1 = truth.clone()
    points1[wrong] = truth[wrong].roll(len(truth) // 8, 0)
    found = refine_matches(first, second, points0, points1, torch.full((len(truth),), 0.8))
    assert found.alike[~wrong].float().mean() > 0.95
    assert found.alike[wrong].float().mean() < 0.3
    moved = (found.points1 - points1).norm(dim=1)
    assert moved.max() <= 3.0


def test_no_point_moves_to_where_none_is_wanted(photograph: torch.Tensor) -> None:
    first, second = views(photograph)
    points0, truth = planted(first)
    rough = truth - 2
    wanted = torch.ones(second.shape, dtype=torch.bool)
    wanted[:, 200:] = False
    scores = torch.full((len(truth),), 0.8)
    free, bound = (refine_matches(first, second, points0, rough, scores, mask) for mask in (None, wanted))
    outside = free.points1[:, 0].round() >= 200
    assert outside.any()
    assert torch.equal(bound.points1[outside], rough[outside])
    assert torch.equal(bound.points1[~outside], free.points1[~outside])


def test_local_warps_are_those_of_the_matches_around() -> None:
    generator = torch.Generator().manual_seed(1)
    points0 = 300 * torch.rand(200, 2, generator=generator)
    linear = torch.tensor([[0.8, -0.6], [0.6, 0.8]])  # turned by 37 degrees
    points1 = points0 @ linear.T + 5
    wrong = torch.arange(200) % 5 == 0
    points1[wrong] = 300 * torch.rand(40, 2, generator=generator)
    warps = local_warps(points0, points1, torch.ones(200))
    error = (warps - linear).abs().amax(dim=(1, 2))[~wrong]
    assert (error < 0.03).float().mean() > 0.95
    for count in range(4):
        assert torch.equal(
            local_warps(points0[:count], points1[:count], torch.ones(count)), torch.eye(2).repeat(count, 1, 1)
        )


def test_no_matches_are_no_trouble(photograph: torch.Tensor) -> None:
    none = torch.zeros(0, 2)
    found = refine_matches(photograph[0], photograph[0], none, none, torch.zeros(0))
    assert found.points1.shape == (0, 2)
    assert found.alike.shape == (0,)


def test_match_refines_unless_told(assets: Path) -> None:
    left, right = assets / "motorcycle_left.png", assets / "motorcycle_right.png"
    matcher = Matcher.from_pretrained(device="cpu", max_keypoints=512)
    plain = matcher.match(left, right, refine=False)
    refined = matcher.match(left, right)
    rows = [np.abs(result.points0[:, 1] - result.points1[:, 1]) for result in (plain, refined)]  # equal in truth
    assert (rows[1] < 0.25).mean() > (rows[0] < 0.25).mean() + 0.03
    assert (rows[1] > 5).mean() < 0.8 * (rows[0] > 5).mean()
    kept = {tuple(match) for match in refined.matches}
    assert kept < {tuple(match) for match in plain.matches}, "some are dropped, none are new"
    np.testing.assert_array_equal(refined.keypoints0, plain.keypoints0)
    unmatched = np.setdiff1d(np.arange(len(plain.keypoints1)), plain.matches[:, 1])
    np.testing.assert_array_equal(refined.keypoints1[unmatched], plain.keypoints1[unmatched])
    assert refined.match_probability == plain.match_probability
    assert set(refined.milliseconds) - set(plain.milliseconds) == {"refine"}
    described = matcher.prepare(left), matcher.prepare(right)
    again = matcher.match(*described)
    np.testing.assert_array_equal(again.points1, refined.points1)
    assert torch.equal(described[1].features.keypoints, matcher.extract(right).keypoints), "stay as they are"


def test_turned_photographs_are_refined_in_their_own_pixels(assets: Path) -> None:
    image = Image.open(assets / "coffee.png").convert("RGB")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    result = keyglue.match(image, turned, rotate="auto", max_keypoints=512)
    expected = np.stack([result.points0[:, 1], image.width - 1 - result.points0[:, 0]], axis=1)
    assert result.rotation == 270
    assert np.median(np.linalg.norm(result.points1 - expected, axis=1)) < 0.05
