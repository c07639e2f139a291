"""A planted scene goes through stores, database and mapper, and comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from keyglue.base.errors import InputError, KeyglueError
from keyglue.base.types import Features
from keyglue.images.coordinates import EXIF_UPRIGHT, to_stored_frame
from keyglue.reconstruction.choose import pairs_by_poses
from keyglue.reconstruction.colmap import MapOptions, build_model, read_model, summarize, write_database, write_ply
from keyglue.reconstruction.pairs import exhaustive_pairs, read_pairs
from keyglue.reconstruction.poses import pose_errors, similarity
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.store import FeatureStore, MatchStore, PairMatches
from keyglue.reconstruction.verify import VerifyOptions, pixel_scale, verify_pair

SIZE, FOCAL, COUNT = (480, 640), 600.0, 6
NAMES = [f"cam/{index}.jpg" for index in range(COUNT)]
Array = NDArray[np.float64]


def look_at(centre: Array) -> tuple[Array, Array]:
    forward = -centre / np.linalg.norm(centre)
    right = np.cross([0, -1, 0], forward)
    right = -right / np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return R, -R @ centre


def poses() -> dict[str, tuple[Array, Array]]:
    angles = np.radians(np.linspace(-40, 40, COUNT))
    heights = (-1, 0.5, -0.3, 0.8, 0.2, -0.6)
    centres = [np.array([6 * np.sin(a), h, -6 * np.cos(a)]) for a, h in zip(angles, heights, strict=True)]
    return {name: look_at(centre) for name, centre in zip(NAMES, centres, strict=True)}


class Scene:
    """Stores of a planted scene, its keypoints with 0.2 pixels of noise."""

    def __init__(self, folder: Path, orientation: int = 1, **record: object) -> None:
        rng = np.random.default_rng(0)
        self.folder, self.orientation = folder, orientation
        self.features, self.matches = folder / "f.h5", folder / "m.h5"
        self.truth, self.record = poses(), ImageRecord(size=SIZE, orientation=orientation, **record)  # type: ignore[arg-type]
        points = rng.uniform(-1.5, 1.5, (300, 3))
        self.pixels: dict[str, Array] = {}
        for name, (R, t) in self.truth.items():
            seen = points @ R.T + t
            exact = FOCAL * seen[:, :2] / seen[:, 2:] + ((SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2)
            self.pixels[name] = exact + rng.normal(0, 0.2, exact.shape)
        with FeatureStore(self.features, {"kind": "features"}) as store:
            for name, pixels in self.pixels.items():
                keypoints, descriptors = torch.from_numpy(pixels).float(), torch.ones(300, 4)
                store.save(name, Features(keypoints=keypoints, descriptors=descriptors, image_size=SIZE), self.record)
        index = np.arange(300)
        with FeatureStore(self.features) as features, MatchStore(self.matches, {"kind": "matches"}) as store:
            for first, second in exhaustive_pairs(COUNT).tolist():
                pair = NAMES[first], NAMES[second]
                matched = index.copy()
                wrong = rng.permutation(300)[:30]
                matched[wrong] = np.roll(wrong, 1)
                found = PairMatches(np.stack([index, matched], axis=1), np.ones(300, dtype=np.float32))
                points0, points1 = (features.keypoints(name) for name in pair)
                verified = verify_pair(points0, points1, found, self.record, self.record, VerifyOptions())
                store.save(*pair, verified, (300, 300), ("", ""))
        images = folder / "images"
        (images / "cam").mkdir(parents=True)
        height, width = self.record.stored_size
        for name in NAMES:
            Image.new("RGB", (width, height), (200, 100, 50)).save(images / name)
        self.images = images

    def database(self, options: MapOptions) -> Path:
        path = self.folder / "database.db"
        with FeatureStore(self.features) as features, MatchStore(self.matches) as matches:
            write_database(path, NAMES, exhaustive_pairs(COUNT), features, matches, options)
        return path

    def stored_truth(self) -> dict[str, tuple[Array, Array]]:
        """Return the poses of the cameras as their files are stored."""
        swap, flip_y, flip_x = EXIF_UPRIGHT.get(self.orientation, (False, False, False))
        turn = np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0])
        turn = turn[[1, 0, 2]] if swap else turn
        return {name: (turn @ R, turn @ t) for name, (R, t) in self.truth.items()}


def test_verification_tells_right_from_wrong_matches(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with MatchStore(scene.matches) as store:
        for first, second in exhaustive_pairs(COUNT).tolist():
            found = store.load(NAMES[first], NAMES[second])
            assert found.inliers is not None
            right = found.matches[:, 0] == found.matches[:, 1]
            assert found.inliers[right].mean() > 0.97
            assert found.inliers[~right].mean() < 0.35  # a wrong match may lie on the epipolar line
            assert found.geometry is not None
            assert found.geometry["config"] == "UNCALIBRATED"


def test_limits_grow_with_the_photographs_that_the_model_saw_smaller() -> None:
    keypoints, descriptors = torch.ones(1, 2), torch.ones(1, 4)
    for seen, original, scale in (((300, 400), None, 1), ((300, 400), (900, 1200), 3), ((300, 400), (150, 200), 1)):
        features = Features(keypoints=keypoints, descriptors=descriptors, image_size=seen, original_size=original)
        assert pixel_scale(features) == scale
    rng, record = np.random.default_rng(1), ImageRecord(size=SIZE)
    points = rng.uniform(-1.5, 1.5, (400, 3))
    places = []
    for R, t in list(poses().values())[:2]:
        seen = points @ R.T + t
        places.append((FOCAL * seen[:, :2] / seen[:, 2:] + (320, 240) + rng.normal(0, 6, (400, 2))).astype(np.float32))
    found = PairMatches(np.stack([np.arange(400)] * 2, axis=1), np.ones(400, dtype=np.float32))
    share = [
        verify_pair(*places, found, record, record, VerifyOptions(), scale).inliers.mean()  # type: ignore[union-attr]
        for scale in (1.0, 4.0)
    ]
    assert share[0] < 0.75
    assert share[1] > 0.95


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_planted_scene_is_found_again(tmp_path: Path, orientation: int) -> None:
    """Turned photographs are mapped as their files store them, which is what COLMAP's users see."""
    scene = Scene(tmp_path, orientation)
    database = scene.database(MapOptions())
    with pycolmap.Database.open(database) as found:
        assert found.num_images() == COUNT
        assert found.num_verified_image_pairs() == COUNT * (COUNT - 1) // 2
        (camera,) = found.read_all_cameras()
        assert (camera.height, camera.width) == scene.record.stored_size
        assert not camera.has_prior_focal_length
        image = found.read_image_with_name(NAMES[2])
        stored = to_stored_frame(scene.pixels[NAMES[2]], orientation, SIZE) + 0.5
        assert np.allclose(found.read_keypoints(image.image_id)[:, :2], stored, atol=1e-3)
        assert len(found.read_matches(1, 2)) == 300
    models = build_model(database, scene.images, tmp_path / "sparse", MapOptions())
    assert models == [tmp_path / "sparse" / "0"]
    model = read_model(tmp_path)
    summary = summarize(model, COUNT)
    assert (summary.images, summary.registered, summary.cameras) == (COUNT, COUNT, 1)
    assert summary.points > 280
    assert summary.track_length > 5
    assert summary.error < 0.35
    errors = pose_errors(model, scene.stored_truth())
    assert errors.names == NAMES
    assert errors.rotations.max() < 0.2
    assert errors.centres.max() < 0.01
    camera = next(iter(model.cameras.values()))
    assert camera.mean_focal_length() == pytest.approx(FOCAL, rel=0.02)
    assert next(iter(model.points3D.values())).color.tolist() == pytest.approx([200, 100, 50], abs=8)
    write_ply(model, tmp_path / "points.ply")
    assert f"element vertex {summary.points}".encode() in (tmp_path / "points.ply").read_bytes()[:400]


def test_the_global_mapper(tmp_path: Path) -> None:
    scene = Scene(tmp_path, focal_length=FOCAL)
    options = MapOptions(mapper="global")
    build_model(scene.database(options), scene.images, tmp_path / "sparse", options)
    model = read_model(tmp_path)
    assert model.num_reg_images() == COUNT
    assert pose_errors(model, scene.truth).centres.max() < 0.01


def test_a_known_camera_is_kept(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    known = (FOCAL, FOCAL, SIZE[1] / 2, SIZE[0] / 2)
    options = MapOptions(camera_model="PINHOLE", camera_params=known)
    build_model(scene.database(options), scene.images, tmp_path / "sparse", options)
    model = read_model(tmp_path)
    assert next(iter(model.cameras.values())).params.tolist() == list(known)
    assert pose_errors(model, scene.truth).rotations.max() < 0.1
    with pytest.raises(InputError, match="PINHOLE has the parameters fx, fy, cx, cy, got 2 values"):
        scene.database(MapOptions(camera_model="PINHOLE", camera_params=(1.0, 2.0)))


def test_cameras_from_exif_and_how_they_are_shared(tmp_path: Path) -> None:
    known = {"focal_length": 512.0, "camera": "ACME One 5 mm"}
    scene = Scene(tmp_path, **known)
    features = Features(keypoints=torch.ones(3, 2), descriptors=torch.ones(3, 4), image_size=(48, 64))
    with FeatureStore(scene.features, {"kind": "features"}) as store:
        store.save("cam/5.jpg", features, ImageRecord(size=(480, 640), focal_length=700.0, camera="ACME One 7 mm"))
        store.save("cam/4.jpg", features, ImageRecord(size=(640, 480), **known))  # type: ignore[arg-type]
        store.save("cam/3.jpg", features, ImageRecord(size=SIZE))
        store.save("cam/2.jpg", features, ImageRecord(size=SIZE))

    def cameras(sharing: str) -> list[list[float]]:
        path = scene.database(MapOptions(cameras=sharing))
        with pycolmap.Database.open(path) as database:
            return sorted([*camera.params[:1], camera.width] for camera in database.read_all_cameras())

    guess = 1.2 * 640
    assert cameras("auto") == [[512, 480], [512, 640], [700, 640], [guess, 640]]
    assert cameras("single") == cameras("folder") == [[512, 480], [512, 640]]
    assert len(cameras("image")) == COUNT
    with pytest.raises(InputError, match="cameras must be one of"):
        MapOptions(cameras="some")
    with pytest.raises(InputError, match="mapper must be one of"):
        MapOptions(mapper="magic")


def test_no_model_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with FeatureStore(scene.features) as features, MatchStore(tmp_path / "none.h5", {}) as matches:
        write_database(tmp_path / "none.db", NAMES, exhaustive_pairs(COUNT), features, matches)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KeyglueError, match="no model came about"):
        build_model(tmp_path / "none.db", scene.images, tmp_path / "sparse")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(InputError, match="holds no COLMAP model"):
        read_model(tmp_path)


def test_pairs_from_the_poses_of_a_model(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    build_model(scene.database(MapOptions()), scene.images, tmp_path / "sparse")
    names = [*NAMES, "not/in/it.jpg"]
    pairs = pairs_by_poses(tmp_path, names, 1, tmp_path / "pairs.txt")
    assert {(0, 1), (4, 5)} <= {tuple(pair) for pair in pairs.tolist()}
    assert pairs.max() < COUNT
    assert len(pairs) < 10
    assert read_pairs(tmp_path / "pairs.txt", names).tolist() == pairs.tolist()
    with pytest.raises(InputError, match="no image has a pose"):
        pairs_by_poses(tmp_path, ["other.jpg"], 1, tmp_path / "pairs.txt")


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_similarity_is_found(mirrored: bool) -> None:
    rng = np.random.default_rng(3)
    source = rng.normal(size=(10, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    target = 2.5 * source @ turn.T + (1, 2, 3)
    if mirrored:
        target[:, 0] *= -1
    scale, found, shift = similarity(source, target)
    assert np.linalg.det(found) == pytest.approx(1)
    exact = np.allclose(scale * source @ found.T + shift, target)
    assert exact != mirrored
    assert mirrored or scale == pytest.approx(2.5)


def test_comparing_poses_takes_three_images(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    build_model(scene.database(MapOptions()), scene.images, tmp_path / "sparse")
    with pytest.raises(InputError, match="takes three images"):
        pose_errors(read_model(tmp_path), dict(list(scene.truth.items())[:2]))
