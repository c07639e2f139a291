"""``keyglue match --pairs``: many pairs, resumed, with broken images among them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import keyglue
from keyglue.pipelines import photograph
from keyglue.ui import pairs
from keyglue.ui.cli import app

SMALL = ("--resize", "240", "--max-keypoints", "128", "--device", "cpu")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="keyglue")


def table(text: str) -> dict[str, str]:
    return dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines() if line.strip())


@pytest.fixture
def folder(tmp_path: Path, assets: Path) -> Path:
    """Folder with four images, one of them broken, and a list of five pairs."""
    for name in ("motorcycle_left.png", "motorcycle_right.png", "coffee.png"):
        shutil.copy(assets / name, tmp_path / name)
    (tmp_path / "bad image.png").write_bytes(b"\x89PNG, but not really")
    (tmp_path / "pairs.txt").write_text(
        "motorcycle_left.png motorcycle_right.png\n"
        "motorcycle_left.png coffee.png  # nothing in common\n"
        "motorcycle_left.png 'bad image.png'\n"
        "'bad image.png' coffee.png\n"
        "motorcycle_right.png coffee.png\n"
    )
    return tmp_path


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were described, in order."""
    names: list[str] = []
    original = keyglue.Matcher.prepare

    def prepare(self: keyglue.Matcher, image: Any, **options: Any) -> keyglue.Photograph:
        names.append(Path(image).name)
        return original(self, image, **options)

    monkeypatch.setattr(keyglue.Matcher, "prepare", prepare)
    return names


def test_each_image_is_described_once_and_a_broken_one_is_left_out(folder: Path, described: list[str]) -> None:
    out = folder / "new" / "out"
    result = run("match", "--pairs", folder / "pairs.txt", "-o", out, "--write", "npz", "--write", "png", *SMALL)
    assert result.exit_code == 1
    assert sorted(described) == ["bad image.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png"]
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2
    assert all("bad image.png" in line for line in errors)
    rows = table(result.stdout)
    assert (rows["pairs matched"], rows["there already"], rows["failed"]) == ("3", "0", "2")
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        f"{pair}.{suffix}"
        for pair in (
            "motorcycle_left.png__coffee.png",
            "motorcycle_left.png__motorcycle_right.png",
            "motorcycle_right.png__coffee.png",
        )
        for suffix in ("npz", "png")
    ]

    single = keyglue.match(
        folder / "motorcycle_left.png", folder / "motorcycle_right.png", resize=240, max_keypoints=128, device="cpu"
    )
    with np.load(out / names[2]) as saved:
        np.testing.assert_array_equal(saved["points0"], single.points0)
        np.testing.assert_array_equal(saved["points1"], single.points1)
    assert len(single) > 20
    with Image.open(out / names[3]) as picture:
        assert picture.width >= 2 * 741


def test_beyond_the_memory_for_what_images_look_like_files_are_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    again = photograph._read_again
    monkeypatch.setattr(
        photograph, "_read_again", lambda image, *how: (read.append(Path(image).name), again(image, *how))[1]
    )
    (folder / "pairs.txt").write_text(
        "motorcycle_left.png motorcycle_right.png\nmotorcycle_left.png coffee.png\ncoffee.png motorcycle_right.png\n"
    )
    command = ("match", "--pairs", folder / "pairs.txt", "--rotate", "0", "--zoom", "1", *SMALL)
    assert run(*command, "-o", folder / "roomy").exit_code == 0
    assert read == []
    monkeypatch.setattr(pairs, "_MOST_BYTES", 240 * 162 * 4)  # one photograph
    assert run(*command, "-o", folder / "tight").exit_code == 0
    assert read == 2 * ["motorcycle_right.png"], "coffee.png is kept in the place of what was done with"
    name = "motorcycle_left.png__motorcycle_right.png.npz"
    with np.load(folder / "roomy" / name) as roomy, np.load(folder / "tight" / name) as tight:
        np.testing.assert_array_equal(roomy["points1"], tight["points1"])
        assert len(roomy["points1"]) > 20


def test_a_second_run_makes_only_what_is_missing(folder: Path, described: list[str]) -> None:
    command = ("match", "--pairs", folder / "pairs.txt", "-o", folder / "out", *SMALL)
    assert run(*command).exit_code == 1
    first = {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    (folder / "out" / "motorcycle_right.png__coffee.png.npz").unlink()
    shutil.copy(folder / "coffee.png", folder / "bad image.png")
    described.clear()
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert table(result.stdout)["there already"] == "2"
    assert table(result.stdout)["pairs matched"] == "3"
    second = {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    assert len(second) == 5
    kept = "motorcycle_left.png__coffee.png.npz"
    assert second[kept] == first[kept]

    described.clear()
    assert run(*command).exit_code == 0
    assert described == []
    result = run(*command, "--overwrite")
    assert result.exit_code == 0
    assert table(result.stdout)["pairs matched"] == "5"
    assert len(described) == 4


def test_another_format_is_missing_although_the_first_is_there(folder: Path) -> None:
    command = ("match", "--pairs", folder / "pairs.txt", "-o", folder / "out", *SMALL)
    run(*command)
    result = run(*command, "--write", "csv", "--write", "json")
    assert table(result.stdout)["pairs matched"] == "3"
    assert len(list((folder / "out").glob("*.csv"))) == 3
    assert len(list((folder / "out").glob("*.json"))) == 3


def test_rotated_pairs(folder: Path) -> None:
    with Image.open(folder / "motorcycle_right.png") as image:
        image.transpose(Image.Transpose.ROTATE_180).save(folder / "turned.png")
    (folder / "pairs.txt").write_text("motorcycle_left.png turned.png\n")
    result = run("match", "--pairs", folder / "pairs.txt", "-o", folder / "out", "--rotate", "180", *SMALL)
    assert result.exit_code == 0, result.output
    with np.load(folder / "out" / "motorcycle_left.png__turned.png.npz") as found:
        rows = found["points0"][:, 1] - (499 - found["points1"][:, 1])
    assert len(rows) > 20
    assert np.median(abs(rows)) < 3


def test_an_empty_list_is_no_error_and_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyglue.Matcher, "from_pretrained", None)
    (tmp_path / "pairs.txt").write_text("# nothing yet\n")
    result = run("match", "--pairs", tmp_path / "pairs.txt", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert table(result.stdout)["pairs matched"] == "0"
