"""Keypoints that were placed badly move to where pictures of a known plane agree."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from keyglue.base.errors import ImageError
from keyglue.images.read import read_image
from keyglue.reconstruction.refine import RefineOptions, nearest_within, refine_model

SIZE, FOCAL = (300, 400), 420.0


def poses() -> list[tuple[np.ndarray, np.ndarray]]:
    """Cameras that look at the plane z = 0 from its front, 30 degrees apart at most."""
    found = []
    for x, y in ((-0.8, 0.2), (-0.3, -0.4), (0.3, 0.3), (0.8, -0.2)):
        centre = np.array([x, y, -2.6])
        forward = -centre / np.linalg.norm(centre)
        right = np.cross([0, 1, 0], forward)
        right /= np.linalg.norm(right)
        R = np.stack([right, np.cross(forward, right), forward])
        found.append((R, -R @ centre))
    return found


def project(points: np.ndarray, R: np.ndarray, t: np.ndarray) -> np.ndarray:
    seen = points @ R.T + t
    return FOCAL * seen[:, :2] / seen[:, 2:] + (SIZE[1] / 2, SIZE[0] / 2)


def render(texture: torch.Tensor, R: np.ndarray, t: np.ndarray) -> Image.Image:
    """Return what a camera sees of a picture that covers x and y from -1 to 1 of the plane."""
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    rays = torch.stack([(columns + 0.5 - SIZE[1] / 2) / FOCAL, (rows + 0.5 - SIZE[0] / 2) / FOCAL], dim=-1)
    rays = torch.cat([rays, torch.ones(*SIZE, 1)], dim=-1).double() @ torch.from_numpy(R)
    centre = torch.from_numpy(-R.T @ t)
    hit = centre + rays * (-centre[2] / rays[..., 2:])
    seen = F.grid_sample(texture[None], hit[None, ..., :2].float(), align_corners=False, padding_mode="border")
    return Image.fromarray(seen[0, 0].round().byte().numpy())


def planted(
    folder: Path,
    texture: Path,
    noise: float,
    orientation: int = 1,
    left_out: AbstractSet[tuple[int, int]] = frozenset(),
) -> tuple[Any, dict[str, np.ndarray]]:
    """Return a model whose keypoints are misplaced, some (image, keypoint) without a point, and the right places."""
    picture = read_image(texture).mean(dim=0, keepdim=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder.mkdir()
    rng = np.random.default_rng(0)
    points = np.c_[rng.uniform(-0.6, 0.6, (80, 2)), np.zeros(80)]
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(
            camera_id=1, model="SIMPLE_PINHOLE", width=SIZE[1], height=SIZE[0], params=[FOCAL, SIZE[1] / 2, SIZE[0] / 2]
        )
    )
    right: dict[str, np.ndarray] = {}
    for number, (R, t) in enumerate(poses(), start=1):
        name = f"{number}.png"
        render(picture, R, t).save(folder / name, exif=exif)
        right[name] = project(points, R, t)
        image = pycolmap.Image(name=name, keypoints=right[name] + rng.normal(0, noise, (80, 2)), camera_id=1)
        image.image_id = number
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.c_[R, t]))
    for index, point in enumerate(points):
        track = pycolmap.Track()
        for number in range(1, 5):
            if (number, index) not in left_out:
                track.add_element(number, index)
        model.add_point3D(point, track)
    return model, right


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_misplaced_keypoints_come_to_agree(tmp_path: Path, assets: Path, orientation: int) -> None:
    noise = 0.7
    model, _ = planted(tmp_path / "images", assets / "coffee.png", noise, orientation)
    model.update_point_3d_errors()
    before = model.compute_mean_reprojection_error()
    orientations = {image.name: orientation for image in model.images.values()}
    seen: list[tuple[str, int, int]] = []
    moved = refine_model(
        model, tmp_path / "images", orientations, keep_cameras=True, progress=lambda *what: seen.append(what)
    )
    assert seen == [("refine", 1, 2), ("refine", 2, 2)]
    assert moved > 180  # one of four keypoints of each of 80 points is the reference
    after = model.compute_mean_reprojection_error()
    assert before > 0.7
    assert after < 0.25 * before
    assert model.num_points3D() > 70
    # Poses that were right stay right.
    for image, (R, t) in zip(sorted(model.images.values(), key=lambda i: i.name), poses(), strict=True):
        centre, expected = image.projection_center(), -R.T @ t
        assert np.linalg.norm(centre - expected) < 0.02


def test_keypoints_without_a_point_come_to_the_point_that_they_see(tmp_path: Path, assets: Path) -> None:
    model, right = planted(tmp_path / "images", assets / "coffee.png", 0.5, left_out={(1, 3), (2, 7), (4, 70)})
    assert model.compute_num_observations() == 317
    refine_model(model, tmp_path / "images", {image.name: 1 for image in model.images.values()}, keep_cameras=True)
    for number, index in ((1, 3), (2, 7), (4, 70)):
        keypoint = model.images[number].points2D[index]
        assert keypoint.has_point3D()
        assert {element.point2D_idx for element in model.points3D[keypoint.point3D_id].track.elements} == {index}
        assert np.linalg.norm(keypoint.xy - right[f"{number}.png"][index]) < 0.8


def test_photographs_are_compared_at_a_bounded_size(tmp_path: Path, assets: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("keyglue.reconstruction.registration.LONGEST", 240)
    monkeypatch.setattr("keyglue.reconstruction.refine.LONGEST", 240)
    model, _ = planted(tmp_path / "images", assets / "coffee.png", 0.7)
    refine_model(model, tmp_path / "images", {image.name: 1 for image in model.images.values()}, keep_cameras=True)
    assert model.num_points3D() > 70
    assert model.compute_mean_reprojection_error() < 0.35


def test_the_nearest_within_reach() -> None:
    rng = np.random.default_rng(0)
    places, others = rng.uniform(-20, 20, (2, 300, 2))
    nearest, distance = nearest_within(places, others, 1.5)
    all_distances = np.linalg.norm(places[:, None] - others, axis=2)
    within = all_distances.min(axis=1) <= 1.5
    assert 50 < within.sum() < 250
    assert np.array_equal(nearest, np.where(within, all_distances.argmin(axis=1), -1))
    assert np.allclose(distance[within], all_distances.min(axis=1)[within])
    assert nearest_within(places, others[:0], 1.5)[0].max() == -1
    nowhere = np.array([[np.nan, 0], [np.inf, -np.inf], [1e30, 0]])
    assert nearest_within(nowhere, others, 1.5)[0].tolist() == [-1, -1, -1]


def test_places_without_texture_are_left_alone(tmp_path: Path) -> None:
    Image.new("L", (200, 200), 120).save(tmp_path / "gray.png")
    model, _ = planted(tmp_path / "images", tmp_path / "gray.png", 0.3)
    before = {number: [point.xy.tolist() for point in image.points2D] for number, image in model.images.items()}
    orientations = {image.name: 1 for image in model.images.values()}
    assert refine_model(model, tmp_path / "images", orientations, RefineOptions(iterations=3), keep_cameras=True) == 0
    after = {number: [point.xy.tolist() for point in image.points2D] for number, image in model.images.items()}
    assert before == after
    assert np.isfinite([point.xyz for point in model.points3D.values()]).all()


def test_pictures_that_are_gone(tmp_path: Path, assets: Path) -> None:
    model, _ = planted(tmp_path / "images", assets / "coffee.png", 0.1)
    with pytest.raises(ImageError, match="does not exist"):
        refine_model(model, tmp_path, {image.name: 1 for image in model.images.values()})
    assert refine_model(pycolmap.Reconstruction(), tmp_path, {}) == 0
