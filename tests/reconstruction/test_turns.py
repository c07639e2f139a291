"""Photographs that are turned to each other are brought the same way up, described so, and kept upright in stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.extract import extract_images
from keyglue.reconstruction.reconstruct import ReconstructOptions, reconstruct
from keyglue.reconstruction.store import FeatureStore
from keyglue.reconstruction.turns import Fit, connected_turns, find_turns
from keyglue.ui.cli import app

from .conftest import Corner, MakeMatcher

TURNED = {"0.png": 0, "1.png": 180, "2.png": 90, "3.png": 0, "4.png": 270, "5.png": 0}
BACK = {name: -degrees % 360 for name, degrees in TURNED.items()}


@pytest.fixture
def turned(corner: Corner, tmp_path: Path) -> Path:
    """The corner's pictures, turned counter-clockwise."""
    folder = tmp_path / "turned"
    folder.mkdir()
    for name, degrees in TURNED.items():
        with Image.open(corner.images / name) as picture:
            picture.rotate(degrees, expand=True).save(folder / name)
    return folder


def test_turns_are_found_and_kept(turned: Path, matcher: Matcher, tmp_path: Path) -> None:
    (turned / "broken.png").write_bytes(b"no picture")
    names, kept = [*sorted(TURNED), "broken.png"], tmp_path / "turns.json"
    stages: list[tuple[str, int, int]] = []
    found = find_turns(turned, names, matcher, kept=kept, progress=lambda *stage: stages.append(stage))
    assert found == {**BACK, "broken.png": 0}
    assert stages[-1] == ("turn", 7, 7)
    again: list[tuple[str, int, int]] = []
    assert find_turns(turned, names, matcher, kept=kept, progress=lambda *stage: again.append(stage)) == found
    assert again == []
    matcher = Matcher(matcher.model, matcher.processor, equalize=False)  # seen with other contrast: looked at again
    assert find_turns(turned, names, matcher, kept=kept, progress=lambda *stage: again.append(stage)) == found
    assert len(again) == len(names)
    kept.write_text('{"made_from": ')
    assert find_turns(turned, names[:2], matcher, kept=kept) == {name: BACK[name] for name in names[:2]}


def test_the_surest_fits_connect_and_most_images_stay() -> None:
    fits = [Fit(0, 1, 180, 50), Fit(1, 2, 0, 40), Fit(0, 2, 90, 10), Fit(3, 4, 270, 20)]
    # Images 1 and 2 agree, so image 0 is the one that is turned; of 3 and 4 the first stays; 5 fits none.
    assert connected_turns(6, fits) == [180, 0, 0, 0, 270, 0]
    assert connected_turns(0, []) == []


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_keypoints_of_a_turned_image_are_those_of_the_upright_one(
    corner: Corner, make_matcher: MakeMatcher, tmp_path: Path, degrees: int
) -> None:
    matcher = make_matcher(resize=360)  # the pictures' own size: the model then sees the very same pixels
    folder = tmp_path / "one"
    folder.mkdir()
    with Image.open(corner.images / "0.png") as picture:
        picture.rotate(-degrees, expand=True).save(folder / "a.png")
        size = picture.size
        picture.save(folder / "b.png")
    store = tmp_path / "f.h5"
    extract_images(folder, ["a.png", "b.png"], store, matcher, turns={"a.png": degrees})
    with FeatureStore(store) as features:
        seen, plain = features.load("a.png"), features.load("b.png")
        np.testing.assert_allclose(seen.keypoints, plain.keypoints, atol=1e-3)
        assert (seen.image_size, seen.original_size) == (plain.image_size, plain.original_size)
        record, own = features.record("a.png"), features.keypoints("a.png")
        assert record.turn == degrees
        # Where the pixel of the upright picture went when it was turned clockwise.
        x, y = features.keypoints("b.png").T
        width, height = size
        expected = {90: (height - 1 - y, x), 180: (width - 1 - x, height - 1 - y), 270: (y, width - 1 - x)}[degrees]
        np.testing.assert_allclose(own, np.stack(expected, axis=1), atol=1e-3)
    assert extract_images(folder, ["a.png"], store, matcher, turns={"a.png": degrees}).done == 0
    assert extract_images(folder, ["a.png"], store, matcher).done == 1


def test_turned_photographs_become_one_model(turned: Path, tmp_path: Path) -> None:
    settings = {"max_keypoints": 384, "resize": 360, "devices": ("cpu",)}
    found = reconstruct(turned, tmp_path / "model", ReconstructOptions(**settings, find_turns=True))
    assert (found.summary.registered, found.models) == (6, 1)
    assert list(found.seconds) == ["turn", "extract", "pairs", "match", "map"]
    plain = reconstruct(turned, tmp_path / "plain", ReconstructOptions(**settings))
    assert found.summary.observations > 1.2 * plain.summary.observations


def test_the_command_says_what_may_help_where_images_stay_out(turned: Path, assets: Path, tmp_path: Path) -> None:
    with Image.open(assets / "brick.png") as picture:
        picture.convert("L").resize((360, 270)).save(turned / "elsewhere.png")
    command = ["reconstruct", str(turned), "-o", str(tmp_path / "plain"), "--max-keypoints", "384", "--resize", "360"]
    plain = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert plain.exit_code == 0, plain.output
    assert "of 7 images are not in the model" in plain.stderr
    assert "--find-turns" in plain.stderr
    found = CliRunner().invoke(app, [*command, "--device", "cpu", "--find-turns"])
    assert "6 of 7" in found.stdout
    assert "--find-turns" not in found.stderr
