"""Scenes on disk: COLMAP models, posed depth, stereo pairs; their labels are right where the truth can be computed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.lightglue.loss import check_labels
from keyglue.multiview.sparse_model import read_sparse_model
from keyglue.training.data import load_data
from keyglue.training.homographies import ViewSettings
from keyglue.training.photometric import PhotometricSettings
from keyglue.training.scenes import DepthScene, StereoScene, TrackScene, load_scene
from keyglue.training.sources import SceneSource, describe

TEXT = {
    "cameras.txt": "# list\n1 SIMPLE_RADIAL 320 240 300.0 160.0 120.0 0.01\n2 PINHOLE 320 240 300 310 160.5 120.5\n",
    "images.txt": (
        "# list\n"
        "1 1 0 0 0 0 0 0 1 a.png\n10.5 20.5 7 30.5 40.5 -1 50.5 60.5 9\n"
        "2 0.7071067811865476 0 0.7071067811865476 0 1 2 3 2 b.png\n11.5 21.5 9 12.5 22.5 7\n"
    ),
}


def _binary(folder: Path) -> None:
    """Write the same model as TEXT in COLMAP's binary format."""
    cameras = struct.pack("<Q", 2)
    cameras += struct.pack("<iiQQ4d", 1, 2, 320, 240, 300, 160, 120, 0.01)
    cameras += struct.pack("<iiQQ4d", 2, 1, 320, 240, 300, 310, 160.5, 120.5)
    (folder / "cameras.bin").write_bytes(cameras)
    half = 0.7071067811865476
    images = struct.pack("<Q", 2)
    images += struct.pack("<i7di", 1, 1, 0, 0, 0, 0, 0, 0, 1) + b"a.png\0" + struct.pack("<Q", 3)
    images += struct.pack("<ddqddqddq", 10.5, 20.5, 7, 30.5, 40.5, -1, 50.5, 60.5, 9)
    images += struct.pack("<i7di", 2, half, 0, half, 0, 1, 2, 3, 2) + b"b.png\0" + struct.pack("<Q", 2)
    images += struct.pack("<ddqddq", 11.5, 21.5, 9, 12.5, 22.5, 7)
    (folder / "images.bin").write_bytes(images)


@pytest.mark.parametrize("binary", [False, True])
def test_sparse_models_are_read_in_both_formats(tmp_path: Path, binary: bool) -> None:
    if binary:
        _binary(tmp_path)
    else:
        for name, text in TEXT.items():
            (tmp_path / name).write_text(text)
    first, second = read_sparse_model(tmp_path)
    assert (first.name, second.name) == ("a.png", "b.png")
    # Half a pixel lies between COLMAP's frame and ours.
    assert (first.camera.cx, first.camera.cy) == (159.5, 119.5)
    assert first.camera.distortion == (0.01, 0.0)
    assert (second.camera.fx, second.camera.fy) == (300, 310)
    assert first.points.tolist() == [[10, 20], [50, 60]]
    assert first.tracks.tolist() == [7, 9]
    assert second.tracks.tolist() == [9, 7]
    np.testing.assert_allclose(first.R, np.eye(3))
    # A quarter turn about the y axis.
    np.testing.assert_allclose(second.R, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-12)
    assert second.t.tolist() == [1, 2, 3]


def test_damaged_and_unknown_models_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sparse model"):
        read_sparse_model(tmp_path)
    _binary(tmp_path)
    whole = (tmp_path / "images.bin").read_bytes()
    (tmp_path / "images.bin").write_bytes(whole[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_sparse_model(tmp_path)
    (tmp_path / "images.bin").write_bytes(whole)
    (tmp_path / "cameras.bin").write_bytes(struct.pack("<Q", 1) + struct.pack("<iiQQ", 1, 8, 320, 240))
    with pytest.raises(InputError, match="camera model 8"):
        read_sparse_model(tmp_path)


def test_folders_without_a_scene_are_none(tmp_path: Path, assets: Path) -> None:
    assert load_scene(tmp_path) is None
    assert load_scene(assets) is None
    (tmp_path / "scene.json").write_text('{"frames": [{"name": "a.png"}]}')
    with pytest.raises(InputError, match=r"scene\.json"):
        load_scene(tmp_path)
    (tmp_path / "scene.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_scene(tmp_path)


def _stereo(assets: Path, long_side: int) -> StereoScene:
    disparity = np.load(assets / "motorcycle_disparity.npz")["disparity"]
    return StereoScene(assets / "motorcycle_left.png", assets / "motorcycle_right.png", disparity, long_side)


def _points(scene: StereoScene, long_side: int) -> tuple[Features, Features, torch.Tensor]:
    """Points of the left frame and where measured disparity puts them in the right one."""
    left = scene.disparities[0]
    size = (left.shape[0], left.shape[1])
    y, x = torch.meshgrid(torch.arange(20, size[0] - 20, 15), torch.arange(60, size[1] - 20, 15), indexing="ij")
    points = torch.stack([x, y], dim=-1).reshape(-1, 2)
    d = left[points[:, 1], points[:, 0]]
    points, d = points[torch.isfinite(d)], d[torch.isfinite(d)]
    other = points.double()
    other[:, 0] -= d
    empty = torch.zeros(len(points), 4)
    features = [Features(keypoints=p, descriptors=empty, image_size=size) for p in (points.double(), other)]
    return features[0], features[1], torch.arange(len(points))


def test_stereo_pairs_keep_their_truth_when_they_are_shrunk(assets: Path) -> None:
    for long_side in (741, 370):
        scene = _stereo(assets, long_side)
        assert max(scene.frames.pyramids[0][0].shape) == long_side
        features0, features1, own = _points(scene, long_side)
        labels0, labels1 = scene.labels(0, 1, features0, features1, 3.0, 5.0)
        assert (labels0 == own).float().mean() > 0.8
        swapped = scene.labels(1, 0, features1, features0, 3.0, 5.0)
        assert torch.equal(swapped[0], labels1)
        assert torch.equal(swapped[1], labels0)


def test_posed_depth_labels_as_the_disparity_it_was_made_from(depth_folder: Path, assets: Path) -> None:
    scene = load_scene(depth_folder, 741)
    assert isinstance(scene, DepthScene)
    assert scene.pairs == [(0, 1)]
    stereo = _stereo(assets, 741)
    features0, features1, own = _points(stereo, 741)
    labels0, labels1 = scene.labels(0, 1, features0, features1, 3.0, 5.0)
    check_labels(labels0, labels1)
    expected, _ = stereo.labels(0, 1, features0, features1, 3.0, 5.0)
    assert (labels0 == own).float().mean() > 0.8
    assert (labels0 == expected).float().mean() > 0.9


def test_views_of_scenes_get_labels_that_fit_their_warps(depth_folder: Path) -> None:
    """Nearest neighbours of the bundled detector agree with the labels much more often than they contradict them."""
    scene = load_scene(depth_folder, 480)
    assert scene is not None
    detector = SuperPointForKeypointDetection.from_pretrained(max_keypoints=256, keypoint_threshold=0.0)
    settings = ViewSettings(size=(192, 256), difficulty=0.2, max_angle=20, region=(0.8, 1.0), overhang=0)
    generator = torch.Generator().manual_seed(0)
    right = wrong = 0
    for _ in range(3):
        plan = SceneSource([scene], settings).draw(2, generator)
        group = describe(plan, detector, PhotometricSettings(changed=0), generator)
        features0, features1, (labels0, labels1) = group.labelled(0, 512)
        check_labels(labels0, labels1)
        nearest = (features0.descriptors @ features1.descriptors.T).argmax(dim=1)
        matched = labels0 >= 0
        right += int((nearest == labels0)[matched].sum())
        wrong += int((nearest != labels0)[matched].sum())
    assert right + wrong > 60
    assert right > 0.6 * (right + wrong)


def test_scene_frames_serve_as_photographs_where_there_are_no_others(depth_folder: Path) -> None:
    data = load_data([depth_folder], torch.device("cpu"))
    assert len(data.scenes) == 1
    assert len(data.photos) + len(data.held_out) == 2


def test_hololens_room_is_registered_to_a_few_pixels(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "multiview" / "hololens_room"
    frames = json.loads((source / "scene.json").read_text())["frames"][:8]
    for name in ("images", "depth"):
        (tmp_path / name).symlink_to(source / name)
    (tmp_path / "scene.json").write_text(json.dumps({"frames": frames}))
    scene = load_scene(tmp_path)
    assert isinstance(scene, DepthScene)
    assert len(scene.pairs) > 5
    _check_with_bundled_detector(scene, fewest=100, share=0.5)


def test_south_building_tracks_label_what_looks_alike(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "multiview" / "south_building"
    (tmp_path / "images").symlink_to(source / "images")
    (tmp_path / "sparse").symlink_to(source / "sparse")
    scene = TrackScene(tmp_path, 480)
    assert len(scene.pairs) > 100
    _check_with_bundled_detector(scene, fewest=60, share=0.6)


def _check_with_bundled_detector(scene: DepthScene | TrackScene, fewest: int, share: float) -> None:
    detector = SuperPointForKeypointDetection.from_pretrained(max_keypoints=512, keypoint_threshold=0.0)
    right = total = 0
    for first, second in scene.pairs[:: max(len(scene.pairs) // 5, 1)][:5]:
        with torch.no_grad():
            features = [
                detector.extract(scene.frames.pyramids[frame][0][None].float() / 255) for frame in (first, second)
            ]
        labels0, labels1 = scene.labels(first, second, *features, 3.0, 5.0)
        check_labels(labels0, labels1)
        nearest = (features[0].descriptors @ features[1].descriptors.T).argmax(dim=1)
        right += int((nearest == labels0)[labels0 >= 0].sum())
        total += int((labels0 >= 0).sum())
    assert total >= fewest
    assert right >= share * total
