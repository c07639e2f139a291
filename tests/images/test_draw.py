"""Pictures: sizes, and the right colours at the right pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import ImageError, InputError
from keyglue.images.canvas import BACKGROUND, INLIER, OUTLIER, PLAIN, ramp
from keyglue.images.coordinates import resize_keypoints
from keyglue.images.draw import draw_keypoints, draw_matches, draw_pruning

GAP = 8
BLACK = Image.new("RGB", (400, 480))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def near(array: np.ndarray, colour: tuple[int, int, int], tolerance: int = 40) -> np.ndarray:
    return np.abs(array - np.array(colour)).max(axis=-1) <= tolerance


@pytest.fixture(scope="module")
def truth(assets) -> tuple[np.ndarray, np.ndarray]:
    """Points of the left photograph and their true partners in the right one."""
    disparity = np.load(assets / "motorcycle_disparity.npz")["disparity"]
    y, x = np.mgrid[10:490:12, 60:740:12].reshape(2, -1)
    shift = disparity[y, x]
    known = np.isfinite(shift) & (x - shift > 0)
    left = np.stack([x, y], axis=1)[known].astype(float)
    return left, left - np.stack([shift[known], np.zeros(known.sum())], axis=1)


def test_the_ramp_goes_from_violet_to_yellow_and_brightens():
    colours = np.array(ramp(np.linspace(0, 1, 50)))
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert colours[0, 2] > colours[0, 1]
    assert colours[-1, 0] > 240 > colours[-1, 2]
    assert ramp([-1, 2]) == ramp([0, 1])


def test_sizes_and_places(assets):
    left, right = assets / "motorcycle_left.png", assets / "motorcycle_right.png"
    picture = draw_matches(left, right, np.zeros((0, 2)), np.zeros((0, 2)))
    assert picture.mode == "RGB"
    assert picture.width == 741 * 2 + GAP
    assert 500 < picture.height < 560
    assert near(pixels(picture)[:500, 741 : 741 + GAP], BACKGROUND, 0).all()
    titled = draw_matches(left, right, [], [], title="A title")
    assert titled.height > picture.height
    top = titled.height - picture.height
    assert np.array_equal(pixels(titled)[top : top + 500], pixels(picture)[:500])
    assert pixels(titled)[:top].max() > 200


def test_photographs_are_shown_muted_and_not_blurred(assets):
    picture = pixels(draw_matches(assets / "chelsea.png", assets / "chelsea.png", [], []))
    original = Image.open(assets / "chelsea.png").resize(
        (481, 320), Image.Resampling.LANCZOS
    )  # 320 is the least height
    shown = picture[:320, :481]
    gray = np.asarray(original.convert("L")).astype(float)
    assert np.corrcoef(shown.mean(axis=2).ravel(), gray.ravel())[0, 1] > 0.99
    assert shown.mean() < 0.85 * np.asarray(original).mean()
    assert np.ptp(shown, axis=2).mean() < 0.5 * np.ptp(np.asarray(original).astype(int), axis=2).mean()


def test_images_of_different_heights_are_brought_to_one(assets):
    tall, flat = Image.new("L", (100, 600), 255), Image.new("RGB", (300, 200), "white")
    picture = pixels(draw_matches(tall, flat, [[50, 300]], [[150, 100]]))
    assert picture.shape[1] == 100 + GAP + 900
    assert near(picture[300, 50], PLAIN).all()
    assert near(picture[300, 100 + GAP + 451], PLAIN).all()


@pytest.mark.parametrize("size", [(3000, 4000), (200, 9000), (9000, 200), (1, 1), (1, 700)])
def test_pictures_stay_handy(size):
    picture = draw_matches(np.zeros(size, np.uint8), np.zeros(size, np.uint8), [[0, 0]], [[0, 0]], [0.5])
    assert picture.width <= 4096 + GAP
    assert picture.height <= 1400


def test_line_and_dots_lie_where_the_points_are():
    points0, points1 = torch.tensor([[100.0, 100.0]]), torch.tensor([[300.0, 200.0]])
    picture = pixels(draw_matches(BLACK, BLACK, points0, points1, scores=[1.0]))
    yellow = ramp([1.0])[0]
    start, end = np.array([100, 100]), np.array([300 + 400 + GAP, 200])
    for share in np.linspace(0, 1, 21):
        x, y = np.rint(start + share * (end - start)).astype(int)
        assert near(picture[y - 1 : y + 2, x], yellow, 90).any(), share
    assert near(picture[100, 100], yellow, 10).all()
    assert near(picture[200, end[0]], yellow, 10).all()
    drawn = np.argwhere((picture[:480] - np.array(picture[0, 0])).max(axis=2) > 60)
    drawn = drawn[(drawn[:, 1] < 395) | (drawn[:, 1] > 415)]
    distance = np.abs((drawn[:, ::-1] - start) @ np.array([-100, 608])) / np.hypot(100, 608)
    assert distance.max() < 4


def test_dots_are_centred_to_a_fraction_of_a_pixel():
    for x in (50.0, 50.5, 50.25):
        picture = pixels(draw_keypoints(BLACK, [[x, 60.0]]))[:480].astype(float)
        bright = picture[..., 1] - picture[0, 0, 1]
        bright = np.where(bright > 20, bright, 0)
        ys, xs = np.mgrid[: bright.shape[0], : bright.shape[1]]
        assert abs((bright * xs).sum() / bright.sum() - x) < 0.2
        assert abs((bright * ys).sum() / bright.sum() - 60) < 0.2


def test_lines_are_smooth():
    picture = pixels(draw_matches(BLACK, BLACK, [[10.0, 100.0]], [[300.0, 133.0]]))
    shades = np.unique(picture[80:160, 150:250, 1] - picture[0, 0, 1])
    assert len(shades) >= 4  # shades between line and background, no stairs


def test_inliers_are_green_and_outliers_red():
    points0 = np.array([[50.0, 100.0], [50.0, 300.0]])
    points1 = np.array([[350.0, 100.0], [350.0, 300.0]])
    picture = pixels(draw_matches(BLACK, BLACK, points0, points1, inliers=[True, False]))
    assert near(picture[100, 50], INLIER, 10).all()
    assert near(picture[300, 50], OUTLIER, 10).all()
    assert near(picture[99:102, 250], INLIER, 60).any()
    red = picture[299:302, 250] - picture[0, 0]
    assert (red[:, 0] > red[:, 1] + 60).any()


def test_the_best_lie_on_top_and_max_lines_keeps_them():
    points0 = np.array([[100.0, 240.0], [100.0, 240.0]])
    points1 = np.array([[300.0, 240.0], [300.0, 240.0]])
    for scores in ([1.0, 0.0], [0.0, 1.0]):
        assert near(pixels(draw_matches(BLACK, BLACK, points0, points1, scores))[240, 100], ramp([1])[0], 10).all()
    points0[0, 1] = points1[0, 1] = 100
    one = pixels(draw_matches(BLACK, BLACK, points0, points1, [0.1, 0.9], max_lines=1))
    assert (one[100, :400] == one[0, 0]).all()
    assert near(one[240, 100], ramp([0.9])[0], 10).all()
    none = pixels(draw_matches(BLACK, BLACK, points0, points1, max_lines=0))
    assert (none[:480, :400] == none[0, 0]).all()


def test_many_true_matches_leave_the_photograph_visible(assets, truth):
    left, right = assets / "motorcycle_left.png", assets / "motorcycle_right.png"
    points0, points1 = truth
    assert len(points0) > 1000
    scores = np.linspace(0.1, 1, len(points0))
    plain = pixels(draw_matches(left, right, [], []))[:500]
    drawn = pixels(draw_matches(left, right, points0, points1, scores))[:500]
    assert np.abs(drawn - plain).mean() > 8
    assert np.corrcoef(drawn.mean(axis=2).ravel(), plain.mean(axis=2).ravel())[0, 1] > 0.5


def test_all_keypoints_are_drawn_faintly():
    keypoints = np.array([[100.0, 100.0], [200.0, 100.0]])
    picture = pixels(draw_matches(BLACK, BLACK, [], [], keypoints0=keypoints, keypoints1=torch.tensor(keypoints)))
    for x in (100, 200, 100 + 400 + GAP, 200 + 400 + GAP):
        assert 20 < (picture[100, x] - picture[0, 0]).max() < 150


def test_keypoints_by_score():
    keypoints = np.array([[100.0, 100.0], [200.0, 100.0], [300.0, 100.0]])
    picture = pixels(draw_keypoints(BLACK, keypoints, torch.tensor([0.3, 0.01, 0.02]), title="Keypoints"))
    top = picture.shape[0] - pixels(draw_keypoints(BLACK, [])).shape[0]
    for x, rank in ((100, 1.0), (200, 0.0), (300, 0.5)):
        assert near(picture[top + 100, x], ramp([rank])[0], 25).all()


def test_pruning_colours_tell_the_layer():
    keypoints = np.array([[100.0, 100.0], [200.0, 100.0], [300.0, 100.0]])
    picture = pixels(
        draw_pruning(BLACK, BLACK, keypoints, torch.tensor(keypoints[:1]), torch.tensor([1, 4, 5]), np.array([5]), 5)
    )
    assert near(picture[100, 100], ramp([0.0])[0], 25).all()
    assert near(picture[100, 200], ramp([0.7])[0], 25).all()
    assert near(picture[100, 300], ramp([1.0])[0], 10).all()
    assert near(picture[100, 100 + 400 + GAP], ramp([1.0])[0], 10).all()
    legend = picture[480:]
    for value in (0.0, 0.7, 1.0):
        assert near(legend, ramp([value])[0], 12).sum() > 20
    assert draw_pruning(BLACK, BLACK, [], [], [], [], 1).width == 400 * 2 + GAP


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_any_image_can_be_drawn(assets, mode):
    gray = Image.open(assets / "grass.png")
    image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
    picture = draw_matches(image, np.asarray(gray), [[1, 1]], [[2, 2]])
    assert picture.width == 512 * 2 + GAP
    if mode not in ("1", "P"):
        assert np.abs(pixels(picture)[10:512, :512] - pixels(picture)[10:512, 520:1032]).mean() < 2


def test_bad_arguments(assets):
    with pytest.raises(InputError, match="one in each"):
        draw_matches(BLACK, BLACK, [[1, 1]], [])
    with pytest.raises(InputError, match=r"\(N, 2\)"):
        draw_matches(BLACK, BLACK, [[1, 1, 1]], [[1, 1, 1]])
    with pytest.raises(InputError, match="NaN"):
        draw_matches(BLACK, BLACK, [[1, np.nan]], [[1, 1]])
    with pytest.raises(InputError, match="scores"):
        draw_matches(BLACK, BLACK, [[1, 1]], [[1, 1]], [0.1, 0.2])
    with pytest.raises(InputError, match="prune0"):
        draw_pruning(BLACK, BLACK, [[1, 1]], [], [1, 2], [], 3)
    with pytest.raises(InputError, match="num_layers"):
        draw_pruning(BLACK, BLACK, [], [], [], [], 0)
    with pytest.raises(ImageError, match="does not exist"):
        draw_keypoints("nothing.png", [])


def test_points_follow_the_scale_of_the_picture():
    large = np.zeros((2400, 2000), np.uint8)
    picture = pixels(draw_keypoints(large, [[1000.0, 600.0]]))
    assert picture.shape[1] == 1000
    (x, y) = np.rint(resize_keypoints(np.array([[1000.0, 600.0]]), (2400, 2000), (1200, 1000))[0]).astype(int)
    assert near(picture[y, x], PLAIN, 25).all()
