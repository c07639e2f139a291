"""``keyglue match`` with the bundled model on real photographs, small, so that a run takes a second."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import keyglue
from keyglue.base.errors import MissingDependencyError
from keyglue.ui.cli import app

SMALL = ("--resize", "320", "--max-keypoints", "256", "--device", "cpu")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="keyglue")


@pytest.fixture
def pair(assets: Path) -> tuple[Path, Path]:
    return assets / "motorcycle_left.png", assets / "motorcycle_right.png"


@pytest.fixture(scope="module")
def expected(assets: Path) -> keyglue.PairResult:
    return keyglue.match(
        assets / "motorcycle_left.png", assets / "motorcycle_right.png", resize=320, max_keypoints=256, device="cpu"
    )


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "milliseconds"}


def table(text: str) -> dict[str, str]:
    return dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines() if line.strip())


def test_table_and_every_kind_of_file(pair: tuple[Path, Path], expected: keyglue.PairResult, tmp_path: Path) -> None:
    picture, as_json = tmp_path / "matches.png", tmp_path / "matches.txt"
    as_csv, as_npz = tmp_path / "matches.csv", tmp_path / "matches.npz"
    result = run("match", *pair, *SMALL, "-o", picture, "--json", as_json, "--csv", as_csv, "--npz", as_npz)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    rows = table(result.stdout)
    assert rows["keypoints of motorcycle_left.png"] == str(len(expected.keypoints0))
    assert rows["matches"] == str(len(expected))
    assert len(expected) > 50
    assert rows["inliers"] == f"{expected.fundamental().inliers.sum()} (fundamental matrix)"
    assert rows["layers used"] == f"{expected.stop_layer} of {expected.num_layers}"
    assert float(rows["match ms"]) > 0

    with Image.open(picture) as drawn:
        assert drawn.width >= 2 * 741
    assert without_times(json.loads(as_json.read_text())) == without_times(expected.to_dict())
    with as_csv.open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(expected)
    with np.load(as_npz) as saved:
        np.testing.assert_array_equal(saved["points1"], expected.points1)


def test_json_on_standard_output_is_alone_there(pair: tuple[Path, Path], expected: keyglue.PairResult) -> None:
    result = run("match", *pair, *SMALL, "--homography", "--json", "-")
    assert result.exit_code == 0, result.output
    assert without_times(json.loads(result.stdout)) == without_times(expected.to_dict())
    inliers = expected.homography().inliers.sum()
    assert table(result.stderr)["inliers"] == f"{inliers} (homography)"


def test_without_a_geometry_library_inliers_are_left_out_unless_asked_for(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(self: keyglue.PairResult) -> None:
        raise MissingDependencyError("poselib", "geometry", "the fundamental matrix")

    monkeypatch.setattr(keyglue.PairResult, "fundamental", fail)
    result = run("match", *pair, *SMALL, "-o", tmp_path / "matches.png")
    assert result.exit_code == 0, result.output
    assert "inliers" not in table(result.stdout)
    assert "pip install 'keyglue[geometry]'" in result.stderr
    assert (tmp_path / "matches.png").is_file()

    asked = run("match", *pair, *SMALL, "--fundamental", "-o", tmp_path / "other.png")
    assert asked.exit_code == 1
    assert asked.stderr.startswith("Error: ")
    assert not (tmp_path / "other.png").exists()


def test_options_reach_the_matcher(pair: tuple[Path, Path], tmp_path: Path) -> None:
    mask = np.zeros((500, 741), dtype=np.uint8)
    mask[:, :300] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    result = run("match", *pair, *SMALL, "--mask0", tmp_path / "mask.png", "--filter-threshold", 0.5, "--json", "-")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    points0 = np.array(found["points0"])
    assert len(points0) > 10
    assert points0[:, 0].max() < 301
    # What the left image shows there is further left in the right one; a wrong match is none of the mask's business.
    assert (np.array(found["points1"])[:, 0] < 301).mean() > 0.9
    assert min(found["scores"]) > 0.5


def test_the_turn_is_found(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with Image.open(pair[1]) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png")
    result = run("match", pair[0], tmp_path / "turned.png", *SMALL, "--json", "-")
    assert result.exit_code == 0, result.output
    assert "-90 degrees, zoom 1" in result.stderr
    found = json.loads(result.stdout)
    assert found["rotation"] == 270
    points0, points1 = np.array(found["points0"]), np.array(found["points1"])
    # Turned counter-clockwise, the column of the right image became the row counted from below.
    rows = points0[:, 1] - points1[:, 0]
    assert np.median(abs(rows)) < 3
    assert len(rows) > 30


def test_zoom_is_a_number_a_fraction_or_auto(pair: tuple[Path, Path]) -> None:
    for text, factor in (("1/2", 0.5), ("2", 2), ("auto", 1)):
        result = run("match", *pair, *SMALL, "--zoom", text, "--json", "-")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["zoom"] == factor
    for text in ("far", "1/0", "100"):
        result = run("match", *pair, *SMALL, "--zoom", text)
        assert result.exit_code != 0
        assert "zoom" in result.output


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_image_is_one_line_and_leaves_no_file(
    pair: tuple[Path, Path], broken: int, tmp_path: Path, assets: Path
) -> None:
    images = list(pair)
    images[broken] = tmp_path / "broken.png"
    images[broken].write_bytes((assets / "coffee.png").read_bytes()[:5000])
    result = run("match", *images, *SMALL, "-o", tmp_path / "matches.png", "--csv", tmp_path / "matches.csv")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "broken.png" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]


def test_an_unknown_model_or_device_says_what_there_is(pair: tuple[Path, Path]) -> None:
    result = run("match", *pair, "--model", "no-such-model")
    assert result.exit_code == 1
    assert "keyglue-small" in result.stderr
    result = run("match", *pair, "--device", "abacus")
    assert result.exit_code == 1
    assert "'cpu'" in result.stderr


def test_images_without_keypoints_give_a_table_of_zeros_and_a_picture(tmp_path: Path) -> None:
    Image.new("L", (200, 100)).save(tmp_path / "black.png")
    result = run("match", tmp_path / "black.png", tmp_path / "black.png", *SMALL, "-o", tmp_path / "matches.png")
    assert result.exit_code == 0, result.output
    assert table(result.stdout)["matches"] == "0"
    assert (tmp_path / "matches.png").is_file()


def test_a_dark_photograph_is_equalised_unless_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    night = tmp_path / "night.png"
    with Image.open(pair[1]) as picture:
        Image.fromarray((np.asarray(picture) * 0.06).round().astype(np.uint8)).save(night)
    found = {}
    for option, equalize in (("--equalize", True), ("--no-equalize", False)):
        printed = json.loads(run("match", pair[0], night, *SMALL, option, "--json", "-").stdout)
        asked = keyglue.match(pair[0], night, resize=320, max_keypoints=256, device="cpu", equalize=equalize)
        assert without_times(printed)["points0"] == without_times(asked.to_dict())["points0"]
        found[equalize] = printed["points0"]
    assert found[True] != found[False]
