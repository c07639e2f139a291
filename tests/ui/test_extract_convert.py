"""``keyglue extract`` and ``keyglue convert`` with the bundled model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import keyglue
from keyglue.ui.cli import app

SMALL = ("--resize", "240", "--max-keypoints", "128", "--device", "cpu")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="keyglue")


def table(text: str) -> dict[str, str]:
    return dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines() if line.strip())


def test_features_are_those_of_the_library_and_are_drawn(assets: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "features"
    result = run("extract", assets / "coffee.png", assets / "chelsea.png", "-o", out, "--draw", *SMALL)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "chelsea.png.png",
        "chelsea.png.safetensors",
        "coffee.png.png",
        "coffee.png.safetensors",
    ]
    loaded = keyglue.Features.load(out / "coffee.png.safetensors")
    matcher = keyglue.Matcher.from_pretrained(resize=240, max_keypoints=128, device="cpu")
    expected = matcher.extract(assets / "coffee.png")
    assert len(loaded) > 50
    assert torch.equal(loaded.keypoints, expected.keypoints)
    assert torch.equal(loaded.descriptors, expected.descriptors)
    assert loaded.original_size == (400, 600)
    with Image.open(out / "coffee.png.png") as drawn, Image.open(assets / "coffee.png") as original:
        assert drawn.size >= original.size


def test_broken_images_are_left_out_and_results_kept(assets: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    command = ("extract", tmp_path / "empty.png", assets / "coffee.png", "-o", tmp_path / "out", *SMALL)
    result = run(*command)
    assert result.exit_code == 1
    assert "empty.png" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert table(result.stdout)["images described"] == "1"
    target = tmp_path / "out" / "coffee.png.safetensors"
    written = target.stat().st_mtime_ns
    assert table(run(*command).stdout)["there already"] == "1"
    assert target.stat().st_mtime_ns == written
    assert table(run(*command, "--overwrite").stdout)["images described"] == "1"
    assert target.stat().st_mtime_ns > written


def test_two_images_of_one_name_are_refused(assets: Path, tmp_path: Path) -> None:
    result = run("extract", assets / "coffee.png", tmp_path / "coffee.png", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "coffee.png" in result.stderr
    assert not (tmp_path / "out").exists()


def test_convert_writes_a_folder_that_loads_with_the_same_weights(tmp_path: Path) -> None:
    result = run("convert", "keyglue-small", "-o", tmp_path / "copy", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "copy") in "".join(result.stdout.split())
    written = keyglue.LightGlueForKeypointMatching.from_pretrained(tmp_path / "copy").state_dict()
    bundled = keyglue.LightGlueForKeypointMatching.from_pretrained().state_dict()
    assert written.keys() == bundled.keys()
    assert all(torch.equal(written[name], bundled[name]) for name in bundled)


def test_convert_to_the_original_layout_and_back(tmp_path: Path, assets: Path) -> None:
    result = run("convert", "keyglue-small", "-o", tmp_path / "original", "--to", "original")
    assert result.exit_code == 0, result.output
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert written


@pytest.mark.parametrize("content", [b"", b"\x80\x04not a pickle", b"PK\x03\x04"])
def test_convert_refuses_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    result = run("convert", tmp_path / "weights.pth", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "weights.pth" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
