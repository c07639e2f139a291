"""Pictures of a model and of stored matches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from keyglue.base.errors import InputError
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.extract import extract_images
from keyglue.reconstruction.match import match_images
from keyglue.reconstruction.pairs import exhaustive_pairs
from keyglue.reconstruction.show import VIEWS, draw_model, draw_stored_matches
from keyglue.reconstruction.verify import VerifyOptions

RED, GREEN = (250, 30, 20), (20, 250, 30)


def model_of_two_clouds() -> pycolmap.Reconstruction:
    """A red cloud at the left of a green one, the red one higher, seen by three cameras from the front."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model="SIMPLE_PINHOLE", width=64, height=48, params=[60, 32, 24])
    )
    rng = np.random.default_rng(0)
    for number, x in enumerate((-1.0, 0.0, 1.0), start=1):
        image = pycolmap.Image(name=f"{number}.png", keypoints=np.zeros((1200, 2)), camera_id=1)
        image.image_id = number
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.c_[np.eye(3), (-x, 0, 6)]))
    for index in range(1200):
        red = index % 2 == 0
        point = rng.uniform(-0.7, 0.7, 3) + ((-1.5, -0.8, 0) if red else (1.5, 0.8, 0))  # y is down
        track = pycolmap.Track()
        track.add_element(1, index)
        track.add_element(2, index)
        model.add_point3D(point, track, np.array(RED if red else GREEN, dtype=np.uint8))
    return model


@pytest.mark.parametrize("view", VIEWS)
def test_points_are_where_the_viewer_expects_them(view: str) -> None:
    picture = np.asarray(draw_model(model_of_two_clouds(), size=(300, 400), view=view)).astype(int)
    assert picture.shape == (300, 400, 3)
    red = np.argwhere((picture[..., 0] > 120) & (picture[..., 1] < 90) & (picture[..., 2] < 90))
    green = np.argwhere((picture[..., 1] > 120) & (picture[..., 0] < 90) & (picture[..., 2] < 90))
    assert min(len(red), len(green)) > 400
    assert red[:, 1].mean() < green[:, 1].mean() - 50
    if view != "top":
        assert red[:, 0].mean() < green[:, 0].mean() - 15
    # Nothing of the middle of the clouds is cut off.
    for cloud in (red, green):
        assert cloud[:, 0].min() > 1
        assert cloud[:, 1].max() < 398


def test_cameras_are_drawn_in_front_of_the_scene() -> None:
    picture = np.asarray(draw_model(model_of_two_clouds(), size=(300, 400), view="top")).astype(int)
    cloud = np.argwhere(picture[..., :2].max(axis=-1) > 200)[:, 0]
    violet = np.argwhere((picture[..., 2] > 130) & (picture[..., 1] < 110))
    assert len(violet) > 20
    assert violet[:, 0].mean() > cloud.mean() + 50  # seen from above, the viewer's side is below


def test_points_that_are_far_off_do_not_shrink_the_rest() -> None:
    model = model_of_two_clouds()
    plain = _size_of_clouds(draw_model(model, size=(300, 400)))
    for index, place in enumerate(((900.0, 0, 0), (0, -4000.0, 50), (-70.0, 60, 80000))):
        track = pycolmap.Track()
        track.add_element(3, index)
        model.add_point3D(np.array(place), track, np.array((255, 255, 255), dtype=np.uint8))
    assert _size_of_clouds(draw_model(model, size=(300, 400))) == pytest.approx(plain, rel=0.05)


def _size_of_clouds(picture: Image.Image) -> float:
    """Return the diagonal of the box around what is red or green."""
    colours = np.asarray(picture).astype(int)
    places = np.argwhere((colours.max(axis=-1) > 120) & (np.sort(colours, axis=-1)[..., 1] < 90))
    return float(np.linalg.norm(np.ptp(places, axis=0)))


def test_an_empty_model_and_an_unknown_view() -> None:
    with pytest.raises(InputError, match="no points or no cameras"):
        draw_model(pycolmap.Reconstruction())
    with pytest.raises(InputError, match="view must be one of oblique, top, front"):
        draw_model(model_of_two_clouds(), view="back")


def test_matches_of_two_images_of_a_store(photos: Path, names: list[str], matcher: Matcher, tmp_path: Path) -> None:
    features, matches = tmp_path / "f.h5", tmp_path / "m.h5"
    extract_images(photos, names, features, matcher)
    match_images(exhaustive_pairs(5), names, features, matches, matcher, verify=VerifyOptions())
    picture = np.asarray(draw_stored_matches(features, matches, photos, "a2.png", "a1.png")).astype(int)
    green = (picture[..., 1] > picture[..., 0] + 60) & (picture[..., 1] > picture[..., 2] + 40)
    assert green.sum() > 500
    with pytest.raises(InputError, match="holds nothing for"):
        draw_stored_matches(features, matches, photos, "a1.png", "a1.png")
