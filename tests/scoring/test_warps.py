"""Random views of photographs: the truth is true, and the same every time; which photographs are held out."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from keyglue.base.errors import InputError
from keyglue.images.read import read_image
from keyglue.images.resize import to_grayscale
from keyglue.multiview.homography import warp_points
from keyglue.scoring import score
from keyglue.scoring.held_out import held_out_names, is_held_out
from keyglue.scoring.methods import classical_methods
from keyglue.scoring.pairs import HomographyTruth
from keyglue.scoring.warps import find_photographs, random_view, warps


def truth_of(pair: object) -> np.ndarray:
    truth = pair.truth  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(truth, HomographyTruth)
    return truth.H


@pytest.mark.parametrize("difficulty", [0.3, 0.7, 1.0])
def test_a_view_lies_inside_the_photograph(difficulty: float) -> None:
    generator = np.random.default_rng(0)
    corners = np.array([[-0.5, -0.5], [639.5, -0.5], [639.5, 479.5], [-0.5, 479.5]])
    spans = []
    for _ in range(50):
        H = random_view(generator, (480, 640), difficulty)
        outline = warp_points(np.linalg.inv(H), corners)
        assert outline.min() >= -0.5 - 1e-6
        assert (outline <= (639.5 + 1e-6, 479.5 + 1e-6)).all()
        spans.append(np.ptp(outline, axis=0))
    assert np.std(spans, axis=0).min() > 5


def test_difficulty_zero_is_the_photograph_itself(assets: Path) -> None:
    pair = next(pair for pair in warps(assets, difficulty=0).pairs if pair.name == "coffee.png")
    np.testing.assert_allclose(truth_of(pair), np.eye(3), atol=1e-9)
    gray = to_grayscale(read_image(assets / "coffee.png"))
    for picture in (pair.image0, pair.image1):
        assert (picture.read() - gray).abs().max() <= 0.51  # rounded to whole gray values


def test_views_differ_by_the_seed_and_are_the_same_every_time(assets: Path) -> None:
    first, again, other = (warps(assets, seed=seed).pairs[2] for seed in (0, 0, 1))
    np.testing.assert_array_equal(truth_of(first), truth_of(again))
    assert torch.equal(first.image1.read(), again.image1.read())
    assert not np.allclose(truth_of(first), truth_of(other))


def test_sift_finds_what_the_homography_says(assets: Path) -> None:
    report = score(warps(assets).limited(4), methods=classical_methods(512)[:1])
    errors = {pair["name"]: pair["methods"]["SIFT, ratio 0.8"] for pair in report.pairs}
    assert sum(record["matches"] for record in errors.values()) > 200
    assert report.summary("SIFT, ratio 0.8")["fine_share"] > 0.8
    assert sum(r["correct@3px"] for r in errors.values()) > 0.85 * sum(r["matches"] for r in errors.values())


def test_a_tar_archive_gives_the_same_pairs_as_its_folder(assets: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in ("coffee.png", "rocket.jpg"):
            archive.add(assets / name, arcname=f"some/folder/{name}")
    packed, plain = warps(tmp_path), {pair.name: pair for pair in warps(assets).pairs}
    assert [pair.name for pair in packed.pairs] == ["coffee.png", "rocket.jpg"]
    for pair in packed.pairs:
        np.testing.assert_array_equal(truth_of(pair), truth_of(plain[pair.name]))
        assert torch.equal(pair.image0.read(), plain[pair.name].image0.read())
    assert len(warps(tmp_path / "photos.tar").pairs) == 2


def test_bad_folders_and_difficulties_are_refused(assets: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "coffee.png").write_bytes((assets / "coffee.png").read_bytes())
    with pytest.raises(InputError, match="two photographs called coffee"):
        warps(tmp_path)
    with pytest.raises(InputError, match="difficulty"):
        warps(assets, difficulty=1.5)
    (tmp_path / "text.txt").write_text("no photograph")
    with pytest.raises(InputError, match="no photographs"):
        find_photographs(tmp_path / "text.txt")


def test_held_out_depends_on_the_name_alone() -> None:
    names = [f"photograph_{number}.jpg" for number in range(4000)]
    chosen = held_out_names(names)
    assert len(chosen) == 200
    assert chosen == held_out_names(reversed(names))
    assert all(is_held_out(f"some/folder/{name}") for name in chosen)
    assert 0.06 < np.mean([is_held_out(name) for name in names]) < 0.09
    assert held_out_names(names, 3) == chosen[:3]


def test_of_the_training_photographs_the_first_200_by_sha1_are_held_out(shared_data: Path) -> None:
    names = [photograph.name for photograph in find_photographs(shared_data / "train")]
    assert len(names) == 2926
    first = sorted(names, key=lambda name: hashlib.sha1(name.encode()).hexdigest())[:200]
    assert held_out_names(names) == first
    assert sum(map(is_held_out, names)) == 200
    pairs = warps(shared_data / "train")
    assert [pair.name for pair in pairs.pairs] == first
