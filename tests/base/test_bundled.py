"""Models that come with the package, and licences."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch

from keyglue.base import bundled
from keyglue.base.bundled import DEFAULT_MODEL, MODELS, find_model, read_licence, warn_if_restricted
from keyglue.base.errors import LicenceWarning
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching

BUNDLED = [entry for entry in MODELS if entry.bundled]


@pytest.mark.parametrize("entry", BUNDLED, ids=lambda entry: entry.name)
def test_a_bundled_model_is_whole(entry: bundled.ModelEntry) -> None:
    assert sorted(file.name for file in entry.folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert read_licence(entry.folder / "README.md").lower() == entry.licence.lower()
    assert "longest_edge" in json.loads((entry.folder / "preprocessor_config.json").read_text())["size"]
    model = LightGlueForKeypointMatching.from_pretrained(entry.name, dtype="auto")
    assert model.dtype == torch.float16
    assert (model.name_or_path, model.licence) == (entry.name, entry.licence)


def test_the_card_names_sources_terms_and_limits() -> None:
    entry = find_model(DEFAULT_MODEL)
    assert entry is not None
    card = (entry.folder / "README.md").read_text()
    for word in (
        "CamVid",
        "Deep Photo",
        "non-commercial",
        "ImageNet",
        "BSDS500",
        "COCO",
        "not stated",
        "Day against night",
    ):
        assert word in card
    assert f"{LightGlueForKeypointMatching.from_pretrained().num_parameters():,} parameters" in card


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\ntext", "apache-2.0"),
        ("---\ntags:\n- a\nlicense: 'MIT'  # a comment\nlibrary_name: x\n---\n", "MIT"),
        ("---\nlicense:\n- apache-2.0\n- cc-by-nc-4.0\n---\n", "apache-2.0, cc-by-nc-4.0"),
        ('---\nlicense: other\nlicense_name: "my-terms"\n---\n', "my-terms"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nmodel-index:\n  - name: x\n    license: cc-by-nc-4.0\nlicense: mit\n---\n", "mit"),
        ("---\nmodel-index:\n  license: cc-by-nc-4.0\n---\n", ""),
        ("---\ntags: [a]\n---\nlicense: mit\n", ""),
        ("license: mit\n", ""),
        ("---\nlicense: mit\n", "mit"),
        ("\ufeff---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("", ""),
    ],
)
def test_reading_a_licence(card: str, licence: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card.encode())
    assert read_licence(tmp_path / "README.md") == licence


def test_a_card_that_cannot_be_read_states_nothing(tmp_path: Path) -> None:
    assert read_licence(tmp_path / "README.md") == ""
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00---")
    assert read_licence(tmp_path / "README.md") == ""
    assert read_licence(tmp_path) == ""


@pytest.mark.parametrize(
    "licence",
    [entry.licence for entry in MODELS if not entry.bundled]
    + [
        "cc-by-nc-4.0",
        "CC BY-NC-SA 4.0",
        "Noncommercial",
        "non-profit research",
        "academic use",
        "research only",
        "nc",
    ],
)
def test_restricted_licences_warn_once(licence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_warned", set())
    with pytest.warns(LicenceWarning, match="model/a"):
        warn_if_restricted("model/a", licence)
    warn_if_restricted("model/a", licence)
    with pytest.warns(LicenceWarning, match="model/b"):
        warn_if_restricted("model/b", licence)


@pytest.mark.parametrize(
    "licence", ["", "apache-2.0", "mit", "AFL-3.0 (academic free license)", "BSD-3-Clause", "NCSA", "cc0"]
)
def test_other_licences_do_not(licence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_warned", set())
    warn_if_restricted("model", licence)


def test_loading_shows_the_licence_and_warns_where_it_is_restricted(
    tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bundled, "_warned", set())
    tiny_model().save_pretrained(tmp_path)
    caplog.set_level(logging.INFO, "keyglue")
    assert LightGlueForKeypointMatching.from_pretrained(tmp_path).licence == ""
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    with pytest.warns(LicenceWarning, match=r"commercial use is not allowed") as caught:
        model = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert Path(caught[0].filename) == Path(__file__)
    assert model.licence == "cc-by-nc-4.0"
    assert "cc-by-nc-4.0" in caplog.text
    assert "not stated" in caplog.text
    with warnings.catch_warnings(record=True) as again:
        LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert not again
