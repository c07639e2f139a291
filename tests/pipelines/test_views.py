"""Views of images, what two images roughly have in common, and matching whatever the scale and whichever way up."""

import cmath
import math

import numpy as np
import pytest
import torch
from PIL import Image

import keyglue
from keyglue.images import read as reading
from keyglue.images.resize import resize_image
from keyglue.multiview.homography import warp_points
from keyglue.pipelines.alignment import common_parts, deformations, find_plane, find_similarity
from keyglue.pipelines.matcher import Matcher
from keyglue.pipelines.photograph import Photograph
from keyglue.pipelines.views import View, Warp

SIZE = (120, 160)


def smooth(size: tuple[int, int]) -> torch.Tensor:
    """An image (2, h, w) whose values are a thousandth of x and y of each pixel: no whole numbers, as of bytes."""
    y, x = torch.meshgrid(torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij")
    return torch.stack([x, y]) / 1000


@pytest.fixture(scope="module")
def matcher() -> Matcher:
    return Matcher.from_pretrained(device="cpu")


@pytest.mark.parametrize(
    "view",
    [
        View.whole(SIZE, SIZE),
        View.whole(SIZE, (60, 80), 90.0),
        View(part=(20, 10, 140, 100), size=(180, 240), degrees=270.0),
        View(part=(20, 10, 140, 100), size=(90, 120), degrees=33.0),
        View(part=(0, 20, 80, 120), size=(50, 40), degrees=200.0),
    ],
)
def test_points_of_a_view_are_where_its_pixels_come_from(view: View) -> None:
    shown, mask = view.render(Photograph.of(smooth(SIZE)), resize_image)
    y, x = torch.meshgrid(torch.arange(shown.shape[1]), torch.arange(shown.shape[2]), indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 2).double().numpy()
    came_from = view.to_image(points).reshape(*shown.shape[1:], 2)
    inside = torch.ones(shown.shape[1:], dtype=torch.bool) if mask is None else mask
    # A resized ramp is bent within a few pixels of its ends.
    left, top, right, bottom = view.part
    low, high = np.array([left, top]) + 3, np.array([right, bottom]) - 4
    inside &= torch.from_numpy(((came_from > low) & (came_from < high)).all(-1))
    assert inside.float().mean() > 0.3
    error = np.abs(1000 * shown.permute(1, 2, 0).numpy() - came_from)[inside.numpy()]
    assert error.max() < 0.02
    assert view.scale == pytest.approx(math.sqrt(view.size[0] * view.size[1] / ((right - left) * (bottom - top))))


def test_a_view_shows_its_part_of_the_mask_and_nothing_outside_the_image() -> None:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:, :80] = True
    for degrees in (0.0, 90.0, 20.0):
        view = View(part=(40, 0, 140, 120), size=(120, 100), degrees=degrees)
        _, wanted = view.render(Photograph.of(smooth(SIZE), mask), resize_image)
        assert wanted is not None
        rows, columns = wanted.nonzero().unbind(1)
        points = view.to_image(torch.stack([columns, rows], 1).double().numpy())
        assert points[:, 0].min() > 39
        assert points[:, 0].max() < 80.5
        # A turned view leaves out what is near the edges of its part.
        assert len(points) == 40 * 120 if degrees % 90 == 0 else 0.75 * 40 * 120 < len(points) < 40 * 120


TILTED = np.array([[0.7, 0.1, 12.0], [-0.08, 0.9, 9.0], [8e-4, 1e-3, 1.0]])


@pytest.mark.parametrize("scale", [1.0, 0.25, 2.0])
def test_points_of_a_warp_are_where_its_pixels_come_from(scale: float) -> None:
    warp = Warp(size=(100, 140), matrix=TILTED @ np.diag([scale, scale, 1.0]))
    shown, wanted = warp.render(Photograph.of(smooth(SIZE)), resize_image)
    assert wanted is not None
    y, x = torch.meshgrid(torch.arange(100), torch.arange(140), indexing="ij")
    came_from = warp.to_image(torch.stack([x, y], -1).reshape(-1, 2).double().numpy()).reshape(100, 140, 2)
    # What is wanted lies inside the image, and what lies well inside is wanted.
    inside = ((came_from > -0.5) & (came_from < [SIZE[1] - 0.5, SIZE[0] - 0.5])).all(-1)
    assert not (wanted.numpy() & ~inside).any()
    assert wanted.float().mean() > 0.8 * inside.mean()
    # A resized ramp is bent near its ends.
    safe = wanted.numpy() & ((came_from > 4) & (came_from < [SIZE[1] - 5, SIZE[0] - 5])).all(-1)
    error = np.abs(1000 * shown.permute(1, 2, 0).numpy() - came_from)[safe]
    assert error.max() < 0.1  # shrinking by other than whole numbers bends a ramp a little


def test_a_warp_respects_the_mask_and_may_show_nothing() -> None:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:, :80] = True
    warp = Warp(size=(100, 140), matrix=TILTED)
    _, wanted = warp.render(Photograph.of(smooth(SIZE), mask), resize_image)
    assert wanted is not None
    rows, columns = wanted.nonzero().unbind(1)
    assert len(rows) > 1000
    assert warp.to_image(torch.stack([columns, rows], 1).double().numpy())[:, 0].max() < 80.5
    for away in (np.array([[1, 0, 500], [0, 1, 0], [0, 0, 1.0]]), -np.eye(3)):
        pixels, wanted = Warp(size=(20, 30), matrix=away).render(Photograph.of(smooth(SIZE)), resize_image)
        assert wanted is not None
        assert not wanted.any()
        assert pixels.shape[1:] == (20, 30)


def test_a_planted_plane_is_found_among_wrong_matches() -> None:
    rng = np.random.default_rng(5)
    points0 = rng.uniform(0, 1, (120, 2)) * [SIZE[1], SIZE[0]]
    points1 = warp_points(TILTED, points0) + rng.normal(0, 0.3, points0.shape)
    points1[70:] = rng.uniform(0, 1, (50, 2)) * [SIZE[1], SIZE[0]]
    found = find_plane(points0, points1, rng.uniform(0.2, 1, 120), SIZE)
    assert found is not None
    H, inliers = found
    assert inliers[:70].mean() > 0.95
    assert inliers[70:].mean() < 0.1
    assert np.abs(warp_points(H, points0[:70]) - warp_points(TILTED, points0[:70])).max() < 1
    # Too few agree.
    points1[30:] = rng.uniform(0, 1, (90, 2)) * [SIZE[1], SIZE[0]]
    assert find_plane(points0, points1, np.ones(120), SIZE) is None
    assert find_plane(points0[:3], points1[:3], np.ones(3), SIZE) is None
    assert find_plane(np.full((9, 2), 3.0), points1[:9], np.ones(9), SIZE) is None


def test_deformations_are_the_derivatives_of_the_homography() -> None:
    points = np.array([[10.0, 20.0], [100.0, 50.0]])
    step = 1e-5
    right, down = (
        (warp_points(TILTED, points + move) - warp_points(TILTED, points - move)) / (2 * step)
        for move in np.array([[step, 0], [0, step]])
    )
    np.testing.assert_allclose(deformations(TILTED, points), np.stack([right, down], axis=-1), rtol=1e-6)


def planted(factor: complex, shift: complex, seed: int, right: int = 40, wrong: int = 25):
    rng = np.random.default_rng(seed)
    points0 = rng.uniform(0, 1, (right + wrong, 2)) * [SIZE[1], SIZE[0]]
    there = factor * (points0 @ [1, 1j]) + shift
    points1 = np.c_[there.real, there.imag] + rng.normal(0, 0.5, points0.shape)
    points1[right:] = rng.uniform(0, 1, (wrong, 2)) * [SIZE[1], SIZE[0]]
    return points0, points1, rng.uniform(0.2, 1, right + wrong)


@pytest.mark.parametrize(("size", "degrees"), [(1.0, 0), (0.3, 100), (0.7, 250), (0.5, 359)])
def test_a_planted_similarity_is_found_among_wrong_matches(size: float, degrees: float) -> None:
    factor = cmath.rect(size, math.radians(degrees))
    shift = 80 + 60j - factor * (80 + 60j)
    points0, points1, scores = planted(factor, shift, seed=3)
    found = find_similarity(points0, points1, scores, SIZE, SIZE)
    assert found is not None
    assert found.inliers[:40].mean() > 0.95
    assert abs(found.factor - factor) < 0.1 * size
    turn = (found.degrees - degrees + 180) % 360 - 180
    assert abs(turn) < 5
    assert found.support == pytest.approx(scores[found.inliers].sum())


def test_matches_that_allow_no_similarity() -> None:
    nothing = np.zeros((0, 2))
    assert find_similarity(nothing, nothing, np.zeros(0), SIZE, SIZE) is None
    same = np.full((9, 2), 5.0)
    assert find_similarity(same, same, np.ones(9), SIZE, SIZE) is None
    spread = np.random.default_rng(0).uniform(0, 100, (9, 2))
    assert find_similarity(spread, same, np.ones(9), SIZE, SIZE) is None


def test_common_parts_are_what_the_other_image_shows() -> None:
    """Image 1 shows the right half of image 0 twice as large."""
    points0, points1, scores = planted(2 + 0j, -160 - 60j, seed=1, wrong=0)
    seen = ((points1 >= 0) & (points1 < [SIZE[1], SIZE[0]])).all(1)
    points0, points1, scores = points0[seen], points1[seen], scores[seen]
    found = find_similarity(points0, points1, scores, SIZE, SIZE)
    assert found is not None
    part0, part1 = common_parts(found, points0, points1, SIZE, SIZE, margin=0.0)
    assert part1 == (0, 0, SIZE[1], SIZE[0])
    # Eight pixels of room on each side.
    assert np.abs(np.array(part0) - [72, 22, 160, 98]).max() <= 6


def zoomed_pair(image: Image.Image, zoom: float, degrees: float):
    """A part of a photograph, turned and enlarged, and the map from the photograph to it."""
    width, height = image.width, image.height
    angle = math.radians(degrees)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / zoom
    centre = np.array([width - 1, height - 1]) / 2
    offset = centre - rotation @ centre
    # Pillow's points lie half a pixel further.
    shifted = offset + 0.5 - rotation @ np.array([0.5, 0.5])
    matrix = (*rotation[0], shifted[0], *rotation[1], shifted[1])
    part = image.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return part, lambda points: (points - offset) @ np.linalg.inv(rotation).T


@pytest.mark.parametrize(("zoom", "degrees"), [(1, 60), (1, 180), (2, 0), (2, 130), (3.3, 250)])
def test_photographs_match_at_any_scale_and_whichever_way_up(
    matcher: Matcher, assets, zoom: float, degrees: float
) -> None:
    image = Image.open(assets / "motorcycle_left.png").convert("RGB")
    part, forward = zoomed_pair(image, zoom, degrees)
    result = matcher.match(image, part)
    error = np.linalg.norm(forward(result.points0) - result.points1, axis=1)
    assert (error < 3 * zoom).sum() > 80
    assert (error < 3 * zoom).mean() > 0.8
    assert abs((result.rotation + degrees + 180) % 360 - 180) < 12
    assert result.zoom == pytest.approx(1 / zoom, rel=0.2)
    assert result.match_probability > 0.9
    swapped = matcher.match(part, image)
    assert abs((swapped.rotation - degrees + 180) % 360 - 180) < 12
    assert swapped.zoom == pytest.approx(zoom, rel=0.2)


def test_a_plane_seen_from_another_side_is_straightened(matcher: Matcher, assets) -> None:
    image = Image.open(assets / "coffee.png").convert("RGB")
    # From pixels of the tilted picture to pixels of the photograph.
    back = np.array([[0.9, 0.55, 10.0], [-0.12, 1.5, 40.0], [-1e-4, 1.9e-3, 1.0]])
    tilted = image.transform(
        image.size, Image.Transform.PERSPECTIVE, tuple(back.reshape(-1)[:8]), Image.Resampling.BICUBIC
    )
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # Pillow's points lie half a pixel further
    forward = np.linalg.inv(np.linalg.inv(half) @ back @ half)

    def right(result: keyglue.PairResult) -> tuple[int, float]:
        good = np.linalg.norm(warp_points(forward, result.points0) - result.points1, axis=1) < 2
        return int(good.sum()), float(good.mean())

    plain, straightened = (right(matcher.match(image, tilted, **how)) for how in ({"rotate": 0, "zoom": 1}, {}))
    assert straightened[0] > 1.25 * plain[0]
    assert straightened[1] > max(plain[1], 0.8)


def test_images_that_match_as_they_are_are_looked_at_once(matcher: Matcher, assets, monkeypatch) -> None:
    pair = [assets / f"motorcycle_{side}.png" for side in ("left", "right")]
    plain = matcher.match(*pair, rotate=0, zoom=1)
    seen: list[torch.Size] = []
    extract = matcher.model.extract
    monkeypatch.setattr(
        matcher.model, "extract", lambda image, **more: (seen.append(image.shape), extract(image, **more))[1]
    )
    result = matcher.match(*pair)
    assert len(seen) == 2
    assert (result.rotation, result.zoom) == (0, 1)
    np.testing.assert_array_equal(result.points0, plain.points0)
    np.testing.assert_array_equal(result.points1, plain.points1)


def test_the_first_certain_view_ends_the_search(matcher: Matcher, assets, monkeypatch) -> None:
    image = Image.open(assets / "motorcycle_left.png").convert("RGB")
    part, _ = zoomed_pair(image, 3, 0)
    seen: list[torch.Size] = []
    extract = matcher.model.extract
    monkeypatch.setattr(
        matcher.model, "extract", lambda image, **more: (seen.append(image.shape), extract(image, **more))[1]
    )
    result = matcher.match(image, part)
    assert result.zoom == pytest.approx(1 / 3, rel=0.2)
    assert len(seen) > 4  # as they are, and two sizes of small copies at least
    assert all(width > height for *_, height, width in seen)  # nothing was turned


def test_prepared_photographs_are_described_once_and_read_again_only_to_be_turned(
    matcher: Matcher, assets, tmp_path, monkeypatch
) -> None:
    image = Image.open(assets / "motorcycle_left.png").convert("RGB")
    files = tmp_path / "upright.png", tmp_path / "turned.png"
    image.save(files[0])
    image.transpose(Image.Transpose.ROTATE_180).save(files[1])
    expected, same = matcher.match(*files), matcher.match(files[0], files[0])
    assert expected.rotation == 180
    upright, turned = map(matcher.prepare, files)
    read: list[object] = []
    load = reading.load_pixels
    monkeypatch.setattr(
        "keyglue.pipelines.photograph.load_pixels", lambda image, **more: (read.append(image), load(image, **more))[1]
    )
    described: list[torch.Size] = []
    extract = matcher.model.extract
    monkeypatch.setattr(
        matcher.model, "extract", lambda image, **more: (described.append(image.shape), extract(image, **more))[1]
    )
    result = matcher.match(upright, upright)
    np.testing.assert_array_equal(result.points1, same.points1)
    assert len(result) > 900
    assert not read
    assert not described
    result = matcher.match(upright, turned)
    np.testing.assert_array_equal(result.points1, expected.points1)
    assert result.rotation == 180
    assert sorted(read) == sorted(files), "each once, however many views are tried"
    assert result.draw().size[0] > 100  # from the files


def test_prepared_photographs_that_do_not_fit_are_refused(matcher: Matcher, assets, tmp_path) -> None:
    file = tmp_path / "image.png"
    image = Image.open(assets / "chelsea.png")
    image.save(file)
    photograph = matcher.prepare(file)
    other = Matcher.from_pretrained(device="cpu", resize=256)
    with pytest.raises(keyglue.InputError, match=r"image 1 .*\(300, 451\)"):
        other.match(file, photograph)
    with pytest.raises(keyglue.InputError, match="has its mask already"):
        matcher.match(file, photograph, mask=(None, np.ones((300, 451))))
    image.resize((200, 100)).save(file)
    with pytest.raises(keyglue.InputError, match=r"image\.png had height and width \(300, 451\)"):
        matcher.match(photograph, assets / "coffee.png")


def test_masks_of_prepared_photographs_hold(matcher: Matcher, assets) -> None:
    pair = [assets / f"motorcycle_{side}.png" for side in ("left", "right")]
    mask = np.zeros((500, 741), bool)
    mask[:, :400] = True
    expected = matcher.match(*pair, mask=mask)
    result = matcher.match(*(matcher.prepare(image, mask=mask) for image in pair))
    np.testing.assert_array_equal(result.points0, expected.points0)
    np.testing.assert_array_equal(result.points1, expected.points1)
    assert len(result) > 50
    assert result.points1[:, 0].max() < 400.5


def test_photographs_of_nothing_in_common_do_not_match_in_any_view(matcher: Matcher, assets) -> None:
    result = matcher.match(assets / "coffee.png", assets / "chelsea.png")
    assert len(result) < 5
    assert result.match_probability < 0.5
    assert (result.rotation, result.zoom) == (0, 1)


def test_a_model_without_calibration_searches_too(assets) -> None:
    matcher = Matcher.from_pretrained(device="cpu", match_probability=None)
    image = Image.open(assets / "motorcycle_left.png").convert("RGB")
    turned = image.transpose(Image.Transpose.ROTATE_180)
    result = matcher.match(image, turned)
    assert result.rotation == 180
    assert result.match_probability is None
    assert len(result) > 400
    assert keyglue.match(image, image, model=matcher).rotation == 0
