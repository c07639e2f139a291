"""Every layout that is read: made here from bundled photographs, and the data beside the project where it is there."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import InputError
from keyglue.multiview.cameras import Camera
from keyglue.multiview.epipolar import triangulate
from keyglue.multiview.homography import warp_points
from keyglue.scoring import score
from keyglue.scoring.methods import classical_methods
from keyglue.scoring.pairs import HomographyTruth, PoseTruth, ScoredPair
from keyglue.scoring.pose_sets import choose_pairs, read_frames
from keyglue.scoring.protocols import Found, match_errors
from keyglue.scoring.run import read_set
from keyglue.scoring.warps import _warp

H = np.array([[1.05, 0.08, -12.0], [-0.06, 0.98, 14.0], [1e-4, 5e-5, 1.0]])
SIFT = classical_methods(256)[:1]


def save(path: Path, image: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0].mul(255).round().numpy().astype(np.uint8)).save(path)


@pytest.fixture
def views(photographs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A photograph, and the same seen through H."""
    image = photographs["astronaut"]
    return image, _warp(image, H)


def write_matrix(path: Path, matrix: np.ndarray) -> None:
    np.savetxt(path, matrix)


def make_hpatches(root: Path, views: tuple[torch.Tensor, torch.Tensor]) -> None:
    for scene in ("i_cat", "v_cat", "v_talent"):
        save(root / scene / "1.ppm", views[0])
        for number in range(2, 7):
            moved = scene[0] == "v"
            save(root / scene / f"{number}.ppm", views[1] if moved else (views[0] * (0.5 + number / 14)).clamp(0, 1))
            write_matrix(root / scene / f"H_1_{number}", H if moved else np.eye(3))


def make_oxford(root: Path, views: tuple[torch.Tensor, torch.Tensor]) -> None:
    for scene in ("wall", "graffiti"):
        save(root / scene / "img1.png", views[0])
        save(root / scene / "img2.jpg", views[1])
        write_matrix(root / scene / "H1to2p", H)


def make_homogr(root: Path, views: tuple[torch.Tensor, torch.Tensor]) -> None:
    save(root / "catA.png", views[0])
    save(root / "catB.png", views[1])
    write_matrix(root / "cat_H_1to2.txt", H)


def make_json(root: Path, views: tuple[torch.Tensor, torch.Tensor]) -> None:
    make_homogr(root, views)
    entry = {"image0": "catA.png", "image1": "catB.png", "H": H.tolist()}
    (root / "pairs.json").write_text(json.dumps([{**entry, "group": "cats"}, {**entry, "name": "again"}]))


def make_csv(root: Path, views: tuple[torch.Tensor, torch.Tensor]) -> None:
    make_homogr(root, views)
    with (root / "pairs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image0", "image1", *(f"h{row}{column}" for row in "123" for column in "123")])
        writer.writerow(["catA.png", "catB.png", *H.ravel()])


@pytest.mark.parametrize(
    ("name", "make", "count", "groups"),
    [
        ("hpatches", make_hpatches, 10, {"illumination", "viewpoint"}),
        ("oxford_affine", make_oxford, 2, {"wall", "graffiti"}),
        ("homogr", make_homogr, 1, {""}),
        ("homographies", make_json, 2, {"cats", ""}),
        ("homographies", make_csv, 1, {""}),
    ],
)
def test_layout_is_read_and_its_homographies_lead_from_image_0_to_image_1(
    name: str, make: Any, count: int, groups: set[str], views: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    make(tmp_path, views)
    pairs = read_set(name, tmp_path)
    assert len(pairs.pairs) == count
    assert {pair.group for pair in pairs.pairs} == groups
    summary = score(pairs, methods=SIFT).summary("SIFT, ratio 0.8")
    assert summary["matches"] > 30
    assert summary["precision@3px"] > 0.9
    assert summary["auc_poselib"][2] > 0.7


def test_hpatches_is_scored_with_480_pixels_on_the_short_side(
    views: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    make_hpatches(tmp_path, views)
    report = score("hpatches", tmp_path, methods=SIFT, limit=1)
    assert report.pairs[0]["reference_sizes"][0] == (480, 480)
    assert report.settings["errors_measured_in"] == {"shortest_edge": 480}


@pytest.mark.parametrize("name", ["hpatches", "oxford_affine", "homogr", "homographies", "strecha", "poses", "warps"])
def test_an_empty_folder_is_refused_with_the_layout(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold|Expected in it|no photographs"):
        read_set(name, tmp_path)


def test_a_missing_or_broken_file_is_named(views: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    make_hpatches(tmp_path, views)
    (tmp_path / "v_cat" / "H_1_4").write_text("1 2 three")
    with pytest.raises(InputError, match="H_1_4 cannot be read as a matrix"):
        read_set("hpatches", tmp_path)
    write_matrix(tmp_path / "v_cat" / "H_1_4", np.ones((3, 3)))
    with pytest.raises(InputError, match="invertible"):
        read_set("hpatches", tmp_path)
    write_matrix(tmp_path / "v_cat" / "H_1_4", H)
    (tmp_path / "i_cat" / "5.ppm").unlink()
    with pytest.raises(InputError, match=r"5\.ppm is part of the set"):
        read_set("hpatches", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "list of objects"), ("[1]", "list of objects"), ("[{}]", "image0, image1, H"), ("[", "as JSON")],
)
def test_a_list_that_says_something_else_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_set("homographies", tmp_path)


def look_at(centre: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation of an upright camera that looks at a point; y points down."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return R, -R @ centre


def make_scene(folder: Path, degrees: list[float], image: torch.Tensor, **more: Any) -> list[dict[str, Any]]:
    """Cameras on a circle of radius 5 around the origin, at given angles."""
    height, width = image.shape[1:]
    frames = []
    for index, angle in enumerate(np.radians(degrees)):
        R, t = look_at(5 * np.array([np.sin(angle), 0.0, -np.cos(angle)]), np.zeros(3))
        K = [[400.0, 0, width / 2], [0, 400.0, height / 2], [0, 0, 1]]
        frames.append(
            {"name": f"images/{index}.png", "w": width, "h": height, "K": K, "R": R.tolist(), "t": t.tolist(), **more}
        )
        save(folder / "images" / f"{index}.png", image)
    (folder / "scene.json").write_text(json.dumps({"frames": frames}))
    return frames


def assert_geometry_is_consistent(pair: ScoredPair, frames: dict[str, dict[str, Any]], centre: np.ndarray) -> None:
    """Points of space, projected by the file's matrices, lie on epipolar lines and triangulate to themselves."""
    assert isinstance(pair.truth, PoseTruth)
    space = centre + np.random.default_rng(0).normal(0, 0.3, (50, 3))
    matrices, pixels = [], []
    for picture in (pair.image0, pair.image1):
        frame = frames[picture.name]
        P = np.array(frame["K"]) @ np.column_stack([frame["R"], frame["t"]])
        image = space @ P[:, :3].T + P[:, 3]
        assert image[:, 2].min() > 0
        matrices.append(P)
        pixels.append(image[:, :2] / image[:, 2:])
    matches = np.stack([np.arange(50)] * 2, axis=1)
    found = Found(keypoints0=pixels[0], keypoints1=pixels[1], matches=matches, scores=np.ones(50))
    assert match_errors(found, pair.truth).max() < 0.02  # files round rotations to six digits
    np.testing.assert_allclose(triangulate(*matrices, *pixels), space, atol=1e-6)


def test_poses_are_read_and_pairs_chosen_by_angle(photographs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    frames = make_scene(tmp_path, [0, 3, 20, 50, 180], photographs["astronaut"])
    pairs = read_set("poses", tmp_path)
    name = tmp_path.name
    # 0-1 is too near, 0-3 and 1-3 are too far, 4 looks from behind.
    assert [pair.name for pair in pairs.pairs] == [f"{name}/{pair}" for pair in ("0-2", "1-2", "2-3")]
    for pair in pairs.pairs:
        assert_geometry_is_consistent(pair, {frame["name"]: frame for frame in frames}, np.zeros(3))


def to_colmap(folder: Path, frames: list[dict[str, Any]]) -> None:
    """Write the cameras of a scene.json as a COLMAP model, whose pixels have their centres at halves."""
    (folder / "sparse" / "0").mkdir(parents=True)
    cameras, images = [], []
    for number, frame in enumerate(frames, start=1):
        (fx, _, cx), (_, fy, cy), _ = frame["K"]
        cameras.append(f"{number} PINHOLE {frame['w']} {frame['h']} {fx} {fy} {cx + 0.5} {cy + 0.5}\n")
        R = np.array(frame["R"])
        # The rotation's axis and angle as a quaternion; none here turns by 180 degrees.
        w = np.sqrt(1 + np.trace(R)) / 2
        turn = (w, *(np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / (4 * w)))
        pose = " ".join(str(float(value)) for value in (*turn, *frame["t"]))
        images.append(f"{number} {pose} {number} {Path(frame['name']).name}\n\n")
    (folder / "sparse" / "0" / "cameras.txt").write_text("".join(cameras))
    (folder / "sparse" / "0" / "images.txt").write_text("".join(images))


def test_a_colmap_model_is_a_scene(photographs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    frames = make_scene(tmp_path, [0, 3, 20, 50], photographs["astronaut"])
    expected = [pair.name for pair in read_set("poses", tmp_path).pairs]
    to_colmap(tmp_path, frames)
    (tmp_path / "scene.json").unlink()
    pairs = read_set("poses", tmp_path).pairs
    assert [pair.name for pair in pairs] == expected
    for pair in pairs:
        assert_geometry_is_consistent(pair, {frame["name"]: frame for frame in frames}, np.zeros(3))
    (tmp_path / "pairs.txt").write_text("0.png images/1.png\n")
    (pair,) = read_set("poses", tmp_path).pairs
    assert (pair.image0.name, pair.image1.name) == ("images/0.png", "images/1.png")


def test_depth_maps_say_what_two_cameras_share(photographs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    image = photographs["astronaut"]
    height, width = image.shape[1:]
    make_scene(tmp_path, [0, 20], image, depth="depth.png", depth_scale=0.001)
    for metres, shared in ((5.0, True), (40.0, False)):  # far behind the centre the cameras see different things
        depth = np.full((height, width), metres * 1000, dtype=np.uint16)
        Image.fromarray(depth).save(tmp_path / "depth.png")
        assert bool(choose_pairs(read_frames(tmp_path / "scene.json"), tmp_path)) == shared
    Image.fromarray(np.zeros((height, width), dtype=np.uint16)).save(tmp_path / "depth.png")
    assert choose_pairs(read_frames(tmp_path / "scene.json"), tmp_path) == []


def test_a_list_of_pairs_beside_the_scene_is_taken_instead(
    photographs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    make_scene(tmp_path, [0, 3, 90], photographs["astronaut"])
    (tmp_path / "pairs.txt").write_text("# mine\nimages/0.png images/1.png\nimages/2.png images/0.png\n")
    pairs = read_set("poses", tmp_path)
    assert [pair.name.split("/")[1] for pair in pairs.pairs] == ["0-1", "2-0"]
    assert "pairs.txt" in pairs.rule
    (tmp_path / "pairs.txt").write_text("images/0.png images/7.png\n")
    with pytest.raises(InputError, match="line 1"):
        read_set("poses", tmp_path)


def test_a_scene_that_is_wrong_is_refused(photographs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    frames = make_scene(tmp_path, [0, 20], photographs["astronaut"])
    for change, message in (({"R": [[1, 0, 0]] * 3}, "not a rotation"), ({"w": 300}, "came with an image of size")):
        (tmp_path / "scene.json").write_text(json.dumps({"frames": [frames[0], {**frames[1], **change}]}))
        with pytest.raises(InputError, match=message):
            score("poses", tmp_path, methods=SIFT)
    (tmp_path / "scene.json").write_text(json.dumps({"frames": frames[:1]}))
    with pytest.raises(InputError, match=r"no pairs.*pairs\.txt"):
        read_set("poses", tmp_path)
    del frames[0]["K"]
    (tmp_path / "scene.json").write_text(json.dumps({"frames": frames}))
    with pytest.raises(InputError, match="has no K"):
        read_set("poses", tmp_path)


def test_a_planted_stereo_pair_has_the_pose_that_sift_finds(assets: Path, tmp_path: Path) -> None:
    """The bundled stereo pair with its calibration: rectified, camera 1 to the right of camera 0."""
    frames = []
    for side, cx in (("left", 311.193), ("right", 342.279)):
        (tmp_path / f"{side}.png").write_bytes((assets / f"motorcycle_{side}.png").read_bytes())
        K = [[994.978, 0, cx], [0, 994.978, 254.877], [0, 0, 1]]
        t = [-0.193 * (side == "right"), 0, 0]
        frames.append({"name": f"{side}.png", "w": 741, "h": 500, "K": K, "R": np.eye(3).tolist(), "t": t})
    (tmp_path / "scene.json").write_text(json.dumps({"frames": frames}))
    (tmp_path / "pairs.txt").write_text("left.png right.png\n")
    report = score("poses", tmp_path, methods=classical_methods(1024)[:1])
    summary = report.summary("SIFT, ratio 0.8")
    assert summary["precision@1px"] > 0.85
    assert report.pairs[0]["methods"]["SIFT, ratio 0.8"]["error_poselib"] < 5


def test_strecha_is_consistent(shared_data: Path) -> None:
    folder = shared_data / "eval" / "strecha"
    pairs = read_set("strecha", folder)
    assert {pair.group for pair in pairs.pairs} == {"fountain-P11", "Herz-Jesus-P25"}
    assert len(pairs.pairs) > 100
    for scene in ("fountain-P11", "Herz-Jesus-P25"):
        entries = json.loads((folder / scene / "scene.json").read_text())["frames"]
        frames = {f"{scene}/{frame['name']}": frame for frame in entries}
        R, t = np.array(entries[5]["R"]), np.array(entries[5]["t"])
        ahead = R.T @ (np.array([0, 0, 9.0]) - t)  # nine metres in front of the sixth camera
        for pair in [pair for pair in pairs.pairs if pair.group == scene][::10]:
            assert_geometry_is_consistent(pair, frames, ahead)


@pytest.mark.parametrize(("name", "count"), [("oxford_affine", 20), ("homogr", 8)])
def test_evaluation_sets_are_complete_and_overlap(name: str, count: int, shared_data: Path) -> None:
    pairs = read_set(name, shared_data / "eval" / name)
    assert len(pairs.pairs) == count
    for pair in pairs.pairs:
        assert isinstance(pair.truth, HomographyTruth)
        (height0, width0), (height1, width1) = (p.read().shape[1:] for p in (pair.image0, pair.image1))
        x, y = np.meshgrid(np.linspace(0, width0, 20), np.linspace(0, height0, 20))
        mapped = warp_points(pair.truth.H, np.stack([x.ravel(), y.ravel()], axis=1))
        assert ((mapped >= 0) & (mapped < (width1, height1))).all(axis=1).mean() > 0.1


def test_camera_of_a_resized_image_is_scaled() -> None:
    camera = Camera(fx=1000, fy=1000, cx=500, cy=400, width=1000, height=800)
    truth = PoseTruth(R=np.eye(3), t=np.ones(3), camera0=camera, camera1=camera)
    half = truth.resized(((800, 1000), (400, 500)), ((800, 1000), (800, 1000)))
    assert half.camera0.size == (400, 500)
    assert half.camera0.cx == 249.75
    assert half.camera1 == camera
    with pytest.raises(InputError, match="came with an image of size"):
        truth.resized(((801, 1000), (400, 500)), ((800, 1000), (800, 1000)))
