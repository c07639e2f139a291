"""keyglue.match, Matcher and PairResult on real photographs with known geometry."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import keyglue
from keyglue import Features, InputError, Matcher


@pytest.fixture(scope="module")
def matcher():
    return Matcher.from_pretrained(max_keypoints=512, resize=480)


@pytest.fixture(scope="module")
def stereo(assets):
    return assets / "motorcycle_left.png", assets / "motorcycle_right.png"


@pytest.fixture(scope="module")
def result(matcher, stereo):
    return matcher.match(*stereo)


def stereo_errors(result, assets):
    """Distance from the true point of image 1, for matches whose disparity is known."""
    disparity = np.load(assets / "motorcycle_disparity.npz")
    disparity = disparity[disparity.files[0]]
    column, row = np.rint(result.points0).astype(int).T
    shift = disparity[row, column]
    known = np.isfinite(shift)
    truth = result.points0[known] - np.stack([shift[known], np.zeros(known.sum())], axis=1)
    return np.linalg.norm(truth - result.points1[known], axis=1)


def test_golden_stereo_pair(assets, stereo):
    """Bounds around what the bundled weights reach: 606 matches, 85, 91 and 96 % within 1, 2 and 5 px."""
    result = keyglue.match(*stereo)
    errors = stereo_errors(result, assets)
    assert 500 <= len(result) <= 800
    assert (errors < 1).mean() > 0.82
    assert (errors < 2).mean() > 0.88
    assert (errors < 5).mean() > 0.93
    assert (np.diff(result.scores) <= 0).all(), "best first"
    assert result.stop_layer < result.num_layers, "an easy pair stops early"
    assert result.match_probability > 0.95
    unrelated = keyglue.match(stereo[0], assets / "chelsea.png")
    assert unrelated.match_probability < 0.5


def test_golden_turned_and_zoomed(assets):
    """The astronaut turned by 30 degrees and scaled by 1.5: 671 matches, 98 % within 1 px with the bundled weights."""
    image = Image.open(assets / "astronaut.png").convert("RGB")
    turned, forward = turned_and_zoomed(image, 30, 1.5)
    result = keyglue.match(image, turned)
    errors = np.linalg.norm(forward(result.points0) - result.points1, axis=1)
    assert len(result) > 600
    assert (errors < 1).mean() > 0.95


def turned_and_zoomed(image, degrees, scale):
    """Return the image turned and scaled about its centre, and the map of points (pixel centres at integers)."""
    angle = np.deg2rad(degrees)
    forward = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    size = int(np.ceil(max(image.size) * scale * 1.4))
    centre0 = (np.array(image.size) - 1) / 2
    centre1 = np.full(2, (size - 1) / 2)
    back = np.linalg.inv(forward)
    # Pillow maps pixel corners, half a pixel from the centres.
    offset = centre0 + 0.5 - back @ (centre1 + 0.5)
    coefficients = (*back[0], offset[0], *back[1], offset[1])
    turned = image.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    return turned, lambda points: (points - centre0) @ forward.T + centre1


def test_points_are_the_matched_keypoints(result):
    assert result.points0.dtype == result.points1.dtype == np.float32
    assert result.points0.shape == result.points1.shape == (len(result), 2)
    assert np.array_equal(result.points0, result.keypoints0[result.matches[:, 0]])
    assert len(result.keypoints0) == 512
    assert result.stop_layer <= result.num_layers == 6
    assert set(result.milliseconds) == {"read", "describe", "match", "refine"}


def test_same_seed_same_bits(matcher, stereo, result):
    again = matcher.match(*stereo)
    assert np.array_equal(again.points0, result.points0)
    assert np.array_equal(again.scores, result.scores)
    a, b = again.fundamental(), result.fundamental()
    assert np.array_equal(a.matrix, b.matrix)
    assert np.array_equal(a.inliers, b.inliers)


@pytest.mark.parametrize("backend", ["poselib", "opencv"])
def test_geometry_of_the_stereo_pair(result, backend):
    """Rectified: no rotation, translation along x, epipolar lines are rows."""
    K0 = np.array([[994.978, 0, 311.193], [0, 994.978, 254.877], [0, 0, 1]])
    K1 = K0.copy()
    K1[0, 2] = 342.279
    pose = result.relative_pose(K0, K1, backend=backend)
    assert np.degrees(np.arccos((np.trace(pose.R) - 1) / 2)) < 1.0
    assert abs(pose.t[0]) > 0.99
    assert pose.inliers.sum() > 150
    assert result.essential(K0, K1, backend=backend).inliers.sum() > 150
    fundamental = result.fundamental(backend=backend)
    rows = np.abs(result.points0[:, 1] - result.points1[:, 1])[fundamental.inliers]
    assert np.median(rows) < 1.5


def test_homography_of_a_warp(matcher, assets):
    image = Image.open(assets / "coffee.png").convert("RGB")
    turned, forward = turned_and_zoomed(image, 10, 1.2)
    result = matcher.match(image, turned)
    estimate = result.homography()
    corners = np.array([[0, 0], [image.width, 0], [0, image.height], [image.width, image.height]], dtype=float)
    found = np.c_[corners, np.ones(4)] @ estimate.matrix.T
    assert np.abs(found[:, :2] / found[:, 2:] - forward(corners)).max() < 4


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotate_auto_finds_the_quarter_turn(matcher, assets, turns):
    image = Image.open(assets / "motorcycle_left.png").convert("RGB")
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(image), turns)))
    result = matcher.match(image, turned, rotate="auto")
    assert result.rotation == (360 - 90 * turns) % 360
    x, y = result.points0.T
    height, width = image.height, image.width
    expected = {1: (y, width - 1 - x), 2: (width - 1 - x, height - 1 - y), 3: (height - 1 - y, x)}[turns]
    assert np.abs(np.stack(expected, axis=1) - result.points1).max() < 1e-2
    assert len(result) > 400


@pytest.mark.parametrize("swap", [False, True])
def test_zoom_auto_finds_that_one_image_shows_a_part_four_times_as_large(assets, swap):
    matcher = Matcher.from_pretrained()
    image = Image.open(assets / "motorcycle_left.png").convert("RGB")
    left, top, width, height = 240, 160, 240, 180
    part = image.crop((left, top, left + width, top + height)).resize((4 * width, 4 * height), Image.Resampling.BICUBIC)
    mask = np.zeros((4 * height, 4 * width), dtype=np.uint8)
    mask[:, : 2 * width] = 255
    pair, masks = ((image, part), (None, mask)) if swap else ((part, image), (mask, None))
    result = matcher.match(*pair, rotate=0)
    assert result.zoom == pytest.approx(0.25 if swap else 4, rel=0.03)
    of_part, of_image = (result.points1, result.points0) if swap else (result.points0, result.points1)
    error = np.hypot(*((of_part + 0.5) / 4 - 0.5 + (left, top) - of_image).T)
    assert (error < 3).mean() > 0.8
    assert len(result) > 300
    masked = matcher.match(*pair, mask=masks)
    assert (masked.points1 if swap else masked.points0)[:, 0].max() < 2 * width
    assert 20 < len(masked) < len(result)
    plain = matcher.match(*pair, rotate=0, zoom=1)
    assert (plain.rotation, plain.zoom) == (0, 1)
    assert len(plain) < 20
    given = matcher.match(*pair, rotate=0, zoom=0.25 if swap else 4)
    assert given.zoom == (0.25 if swap else 4)
    assert 100 < len(given) < len(result)


def test_masks(matcher, assets, stereo):
    with Image.open(stereo[0]) as image:
        size = image.size
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[:, : size[0] // 2] = 255
    result = matcher.match(*stereo, mask=(mask, None))
    assert result.keypoints0[:, 0].max() < size[0] // 2
    assert result.keypoints1[:, 0].max() > size[0] // 2
    with pytest.raises(InputError):
        matcher.match(*stereo, mask=np.ones((10, 10)))


def test_features_are_kept_and_matched_later(matcher, stereo, result, tmp_path):
    for name, image in zip("ab", stereo, strict=True):
        matcher.extract(image).save(tmp_path / f"{name}.safetensors")
    loaded = [Features.load(tmp_path / f"{name}.safetensors") for name in "ab"]
    again = matcher.match_features(*loaded)
    plain = matcher.match(*stereo, refine=False)  # of features alone nothing can be refined
    assert np.array_equal(again.points0, plain.points0)
    assert np.array_equal(again.points1, plain.points1)
    assert again.size0 == result.size0
    with pytest.raises(InputError, match="images="):
        again.draw()
    assert again.draw(images=stereo).width > 741


def test_saving(result, tmp_path):
    for suffix in (".json", ".csv", ".npz"):
        result.save(tmp_path / f"matches{suffix}")
    content = json.loads((tmp_path / "matches.json").read_text())
    assert np.allclose(content["points0"], result.points0)
    with (tmp_path / "matches.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result)
    assert float(rows[0]["x1"]) == pytest.approx(result.points1[0, 0], rel=1e-4)
    arrays = np.load(tmp_path / "matches.npz")
    assert np.array_equal(arrays["points1"], result.points1)
    with pytest.raises(InputError, match=r"\.json"):
        result.save(tmp_path / "matches.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["matches.csv", "matches.json", "matches.npz"]


def test_pictures(result):
    assert result.draw().mode == "RGB"
    inliers = result.fundamental().inliers
    assert result.draw(inliers).size == result.draw().size
    assert result.draw_pruning().mode == "RGB"


def test_settings_reach_the_model(stereo):
    few = keyglue.match(*stereo, max_keypoints=100, resize=320, filter_threshold=0.5)
    assert len(few.keypoints0) == 100
    assert few.scores.min() > 0.5
    squeezed = keyglue.match(*stereo, max_keypoints=100, resize=(240, 320))
    assert squeezed.keypoints0[:, 0].max() > 500


def test_bfloat16_finds_the_same(stereo, result):
    half = Matcher.from_pretrained(max_keypoints=512, resize=480, dtype="bfloat16").match(*stereo)
    first = {tuple(point) for point in np.round(result.points0)}
    second = {tuple(point) for point in np.round(half.points0)}
    assert len(first & second) > 0.6 * len(first)


def test_nothing_to_match(matcher):
    flat = np.full((200, 300, 3), 128, dtype=np.uint8)
    result = matcher.match(flat, flat)
    assert result.points0.shape == (len(result), 2)
    tiny = matcher.match(np.zeros((5, 5), dtype=np.uint8), flat)
    assert len(tiny) == 0
    assert tiny.points1.shape == (0, 2)
    assert tiny.homography().matrix is None
    assert tiny.draw().mode == "RGB"
    assert tiny.to_dict()["points0"] == []


def test_bad_arguments(stereo, matcher):
    for rotate in (float("inf"), float("nan"), "left", None):
        with pytest.raises(InputError, match="rotate"):
            matcher.match(*stereo, rotate=rotate)
    for zoom in (0, -1, float("nan"), 100, "far", None):
        with pytest.raises(InputError, match="zoom"):
            matcher.match(*stereo, zoom=zoom)
    with pytest.raises(InputError, match="Matcher brings its own"):
        keyglue.match(*stereo, model=matcher, max_keypoints=5)
    with pytest.raises(InputError, match="equalize: a Matcher brings its own"):
        keyglue.match(*stereo, model=matcher, equalize=False)
    with pytest.raises(InputError, match="resize"):
        keyglue.match(*stereo, resize="big")
    with pytest.raises(InputError, match="device"):
        keyglue.match(*stereo, device="gpu")
    with pytest.raises(InputError, match="dtype"):
        keyglue.match(*stereo, dtype="int8")
    with pytest.raises(keyglue.CheckpointError, match="no model"):
        keyglue.match(*stereo, model="nothing-like-that")
    with pytest.raises(keyglue.ImageError, match=r"missing\.png"):
        keyglue.match("missing.png", stereo[0])


def test_tensors_and_arrays_are_images_too(matcher, stereo, result):
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in stereo]
    again = matcher.match(arrays[0], torch.from_numpy(arrays[1].copy()).permute(2, 0, 1))
    assert np.array_equal(again.points0, result.points0)
