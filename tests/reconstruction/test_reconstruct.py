"""A folder of photographs becomes a model with one call or one command, and a second run finds it made."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image
from typer.testing import CliRunner

from keyglue.base.errors import InputError
from keyglue.reconstruction.colmap import MapOptions, read_model
from keyglue.reconstruction.poses import pose_errors
from keyglue.reconstruction.reconstruct import ReconstructOptions, reconstruct
from keyglue.reconstruction.refine import RefineOptions, refine_model
from keyglue.reconstruction.times import StageTimes
from keyglue.ui.cli import app

from .conftest import Corner

SETTINGS = {"max_keypoints": 384, "resize": 360, "devices": ("cpu",)}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def states(folder: Path) -> dict[str, int]:
    """Return when each file was last written; reading a store through HDF5 leaves it as it is."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(corner: Corner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "model"
    stages: list[tuple[str, int, int]] = []
    found = reconstruct(
        corner.images, output, ReconstructOptions(**SETTINGS), progress=lambda *stage: stages.append(stage)
    )
    assert (found.summary.registered, found.models, found.pairs, found.failed) == (6, 1, 15, {})
    assert list(found.seconds) == ["extract", "pairs", "match", "map"]
    assert {("extract", 6, 6), ("match", 15, 15), ("refine", 2, 2)} <= set(stages)
    return output


def test_the_model_is_right(made: Path, corner: Corner) -> None:
    model = read_model(made)
    errors = pose_errors(model, corner.truth)
    assert errors.names == sorted(corner.truth)
    assert np.median(errors.rotations) < 0.1
    assert np.median(errors.centres) < 0.005
    assert model.compute_mean_reprojection_error() < 0.5
    (camera,) = model.cameras.values()
    assert camera.mean_focal_length() == pytest.approx(corner.focal, rel=0.02)
    summary = json.loads((made / "summary.json").read_text())
    assert (summary["images"], summary["registered"], summary["points"]) == (6, 6, model.num_points3D())
    with Image.open(made / "model.png") as picture:
        assert picture.size == (1400, 900)
    assert b"element vertex" in (made / "points.ply").read_bytes()[:200]


def test_the_database_opens_in_colmap_and_maps(made: Path, corner: Corner, tmp_path: Path) -> None:
    models = pycolmap.incremental_mapping(made / "database.db", corner.images, tmp_path)
    assert models[0].num_reg_images() == 6
    assert np.median(pose_errors(models[0], corner.truth).rotations) < 1


@pytest.mark.parametrize("free", [False, True])
def test_a_principal_point_off_the_middle(made: Path, corner: Corner, free: bool) -> None:
    model = read_model(made)
    (camera,) = model.cameras.values()
    camera.principal_point_x += 9
    orientations = {image.name: 1 for image in model.images.values()}
    refine_model(model, corner.images, orientations, RefineOptions(principal_point=free))
    away = abs(camera.principal_point_x - corner.size[1] / 2)
    assert away < 3 if free else away == 9


def test_a_second_run_redoes_nothing(made: Path, corner: Corner) -> None:
    before, times = states(made), json.loads((made / "summary.json").read_text())["seconds"]
    stages: list[tuple[str, int, int]] = []
    again = reconstruct(
        corner.images, made, ReconstructOptions(**SETTINGS), progress=lambda *stage: stages.append(stage)
    )
    assert stages == [("extract", 6, 6), ("match", 15, 15)]
    assert again.summary.registered == 6
    after = states(made)
    assert before.keys() == after.keys()
    changed = {Path(path).name for path in before if before[path] != after[path]}
    assert changed <= {"summary.json", "features.h5", "matches.h5"}
    # The times are still those of the work.
    summary = json.loads((made / "summary.json").read_text())
    assert again.seconds == summary["seconds"] == times
    assert times["extract"] > 0.05
    # Another way of mapping maps again, from the same features and matches.
    other = reconstruct(corner.images, made, ReconstructOptions(**SETTINGS, mapping=MapOptions(refine=False)))
    assert {**other.seconds, "map": 0} == {**times, "map": 0}
    assert other.seconds["map"] != times["map"]
    assert states(made)[str(made / "points.ply")] != before[str(made / "points.ply")]


def test_times_are_those_of_the_work_that_was_done(tmp_path: Path) -> None:
    def run_stage(done: int, kept: int, seconds: float) -> float:
        times = StageTimes(tmp_path / "times.json")
        with times.of("match") as work:
            time.sleep(seconds)
            work.done, work.kept = done, kept
        return times.seconds["match"]

    first = run_stage(3, 0, 0.05)
    assert first >= 0.05
    assert run_stage(0, 3, 0) == first
    assert run_stage(2, 3, 0.05) >= first + 0.05
    assert run_stage(5, 0, 0) < 0.05  # anew
    (tmp_path / "times.json").write_text('{"match": "damaged')
    assert run_stage(0, 3, 0.02) >= 0.02


def test_each_stage_is_a_verb(corner: Corner, tmp_path: Path) -> None:
    features, pairs, matches = tmp_path / "f.h5", tmp_path / "p.txt", tmp_path / "m.h5"
    extract = ("features", corner.images, "-o", features, "--max-keypoints", 384, "--resize", 360, "--device", "cpu")
    assert "images described  6" in run(*extract)
    assert "there already     6" in run(*extract)
    assert "pairs       15" in run("pairs", features, "-o", pairs, "--pairs", "sequential", "--overlap", 5)
    match = ("matches", features, pairs, "-o", matches, "--device", "cpu")
    assert "pairs matched  15" in run(*match)
    assert "there already  15" in run(*match)
    assert "6 of 6" in run("map", corner.images, features, matches, "-o", tmp_path, "--no-refine")
    run("show", tmp_path, "-o", tmp_path / "top.png", "--view", "top")
    assert (tmp_path / "top.png").is_file()
    nearest = run("pairs", features, "-o", tmp_path / "near.txt", "--poses", tmp_path, "--neighbours", 1)
    assert "near.txt" in nearest


def test_folders_without_enough_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        reconstruct(tmp_path / "none", tmp_path / "model")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (64, 64)).save(photos / "one.png")
    with pytest.raises(InputError, match="has 1 image that can be read"):
        reconstruct(photos, tmp_path / "model", ReconstructOptions(**SETTINGS))


def test_a_castle(shared_data: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((shared_data / "collections" / "sceaux_castle").iterdir())[3:8]:
        (photos / path.name).symlink_to(path)
    settings = {**SETTINGS, "resize": 512, "max_keypoints": 320}
    found = reconstruct(photos, tmp_path / "model", ReconstructOptions(**settings))
    assert (found.summary.registered, found.models) == (5, 1)
    assert found.summary.error < 1
    assert found.summary.points > 200
    assert found.summary.track_length > 3
