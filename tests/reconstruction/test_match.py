"""Pairs to a store: the same matches as one by one, resumed, verified, in a good order, with bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from keyglue.base.errors import InputError, StoreError
from keyglue.base.types import Features
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.executor import DeviceExecutor
from keyglue.reconstruction.extract import extract_images
from keyglue.reconstruction.match import match_images
from keyglue.reconstruction.overlap import overlap_score
from keyglue.reconstruction.pairs import exhaustive_pairs
from keyglue.reconstruction.store import FeatureStore, MatchStore
from keyglue.reconstruction.verify import VerifyOptions

MakeMatcher = Callable[..., Matcher]


@pytest.fixture
def described(photos: Path, names: list[str], matcher: Matcher, tmp_path: Path) -> Path:
    """Store of features of the photographs."""
    extract_images(photos, names, tmp_path / "f.h5", matcher)
    return tmp_path / "f.h5"


def test_the_store_holds_what_the_matcher_finds(
    described: Path, names: list[str], matcher: Matcher, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    pairs = exhaustive_pairs(len(names))
    report = match_images(
        pairs, names, described, tmp_path / "m.h5", matcher, progress=lambda *what: seen.append(what), batch=3
    )
    assert (report.done, report.kept, report.failed) == (10, 0, {})
    assert seen[-1] == ("match", 10, 10)
    with FeatureStore(described) as features, MatchStore(tmp_path / "m.h5") as matches:
        assert len(list(matches.pairs())) == 10
        for first, second in pairs.tolist():
            single = matcher.match_features(features.load(names[first]), features.load(names[second]))
            found = matches.load(names[first], names[second])
            order = np.argsort(single.matches[:, 0])
            assert found.matches.tolist() == single.matches[order].tolist()
            assert np.allclose(found.scores, single.scores[order], atol=1e-3)
            assert found.inliers is None
        assert len(matches.load("a1.png", "a2.png")) > 30


def test_verification_finds_the_shift_between_two_views(
    photos: Path, make_matcher: MakeMatcher, tmp_path: Path
) -> None:
    """At the photographs' own size, so that keypoints are exact to a pixel and limits mean pixels of the files."""
    # Every mutual best match is let through: above its threshold the model finds too few between unrelated photographs.
    matcher = make_matcher(resize=420, max_keypoints=256, filter_threshold=0.0)
    names, limit = ["a1.png", "a2.png", "b1.png"], 2.0
    extract_images(photos, names, tmp_path / "f.h5", matcher)
    options = VerifyOptions(max_error=limit)
    match_images(exhaustive_pairs(3), names, tmp_path / "f.h5", tmp_path / "m.h5", matcher, verify=options)
    with FeatureStore(tmp_path / "f.h5") as features, MatchStore(tmp_path / "m.h5") as matches:
        found = matches.load("a1.png", "a2.png")
        shift = features.keypoints("a1.png")[found.matches[:, 0]] - features.keypoints("a2.png")[found.matches[:, 1]]
        error = np.linalg.norm(shift - (60, 40), axis=1)
        assert found.inliers is not None
        assert found.inliers.sum() > 100
        # The estimated geometry is off by a fraction of a pixel.
        assert error[found.inliers].max() < limit + 0.5
        assert error[~found.inliers].min() > limit - 0.5
        assert found.geometry is not None
        # Crops of one picture are related by a homography, a shift.
        assert found.geometry["config"] in ("PLANAR", "PANORAMIC", "PLANAR_OR_PANORAMIC")
        H = np.array(found.geometry["H"])
        H /= H[2, 2]
        assert np.allclose(H[:, :2], np.eye(3)[:, :2], atol=0.01)
        assert np.allclose(H[:2, 2], (-60, -40), atol=1)
        unrelated = matches.load("a1.png", "b1.png")
        assert len(unrelated) >= 15  # enough to look for a geometry
        assert unrelated.inliers is not None
        assert not unrelated.inliers.any()
        assert unrelated.geometry == {"config": "DEGENERATE"}


def test_only_what_is_missing_or_has_changed_is_matched_again(
    described: Path, photos: Path, names: list[str], matcher: Matcher, tmp_path: Path
) -> None:
    pairs, store = exhaustive_pairs(5), tmp_path / "m.h5"
    assert match_images(pairs[:4], names, described, store, matcher).done == 4
    report = match_images(pairs, names, described, store, matcher)
    assert (report.done, report.kept) == (6, 4)
    (photos / "a1.png").write_bytes((photos / "b1.png").read_bytes())
    extract_images(photos, names, described, matcher)
    report = match_images(pairs, names, described, store, matcher)
    assert (report.done, report.kept) == (4, 6)
    with MatchStore(store) as matches:
        assert len(matches.load("a1.png", "b1.png")) > 50


def test_another_model_or_setting_is_noticed(
    described: Path, names: list[str], matcher: Matcher, make_matcher: MakeMatcher, tmp_path: Path
) -> None:
    pairs, store = exhaustive_pairs(5), tmp_path / "m.h5"
    match_images(pairs[:1], names, described, store, matcher)
    with pytest.raises(StoreError, match=r"matcher .*filter_threshold"):
        match_images(pairs, names, described, store, make_matcher(filter_threshold=0.5))
    with pytest.raises(StoreError, match=r"verification None there"):
        match_images(pairs, names, described, store, matcher, verify=VerifyOptions())
    with pytest.raises(StoreError, match=r"kind 'features' there and 'matches' now"):
        match_images(pairs, names, described, described, matcher)


def test_hopeless_pairs_are_skipped(described: Path, names: list[str], matcher: Matcher, tmp_path: Path) -> None:
    with FeatureStore(described) as features:
        loaded = {name: features.load(name) for name in names}
    related, unrelated = (
        overlap_score(loaded["a1.png"], loaded["a2.png"]),
        overlap_score(loaded["a1.png"], loaded["b1.png"]),
    )
    assert related > 4 * unrelated
    nothing = loaded["a1.png"].select(torch.zeros(0, dtype=torch.long))
    assert overlap_score(nothing, loaded["a2.png"]) == 0
    limit = (related + unrelated) // 2
    match_images(exhaustive_pairs(5), names, described, tmp_path / "m.h5", matcher, min_overlap=limit)
    with MatchStore(tmp_path / "m.h5") as matches:
        assert len(matches.load("a1.png", "a2.png")) > 30
        skipped = matches.load("a1.png", "b1.png")
        assert len(skipped) == 0
        assert skipped.geometry == {"config": "UNDEFINED", "skipped": "too little overlap"}
    # A skipped pair is not looked at again.
    assert match_images(exhaustive_pairs(5), names, described, tmp_path / "m.h5", matcher, min_overlap=limit).done == 0


def test_memory_is_bounded_and_images_are_read_once_where_it_suffices(
    described: Path, names: list[str], matcher: Matcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = FeatureStore.load

    def counted(self: FeatureStore, name: str) -> Features:
        loads.append(name)
        return load(self, name)

    monkeypatch.setattr(FeatureStore, "load", counted)
    match_images(exhaustive_pairs(5), names, described, tmp_path / "m.h5", matcher)
    assert sorted(loads) == sorted(names)
    loads.clear()
    match_images(exhaustive_pairs(5), names, described, tmp_path / "tight.h5", matcher, memory=1)
    assert len(names) < len(loads) <= 20
    with MatchStore(tmp_path / "m.h5") as one, MatchStore(tmp_path / "tight.h5") as other:
        for first, second in exhaustive_pairs(5).tolist():
            pair = names[first], names[second]
            assert one.load(*pair).matches.tolist() == other.load(*pair).matches.tolist()


def test_images_without_keypoints_and_features_that_are_missing(
    described: Path, photos: Path, names: list[str], matcher: Matcher, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (300, 200)).save(photos / "black.png")
    extract_images(photos, ["black.png"], described, matcher)
    everything = [*names, "black.png"]
    report = match_images(
        exhaustive_pairs(6), everything, described, tmp_path / "m.h5", matcher, verify=VerifyOptions(), min_overlap=4
    )
    assert (report.done, report.failed) == (15, {})
    with MatchStore(tmp_path / "m.h5") as matches:
        assert len(matches.load("a1.png", "black.png")) == 0
    with pytest.raises(InputError, match=r"holds nothing for gone\.png"):
        match_images(exhaustive_pairs(2), ["a1.png", "gone.png"], described, tmp_path / "n.h5", matcher)
    none = match_images(exhaustive_pairs(1), names[:1], described, tmp_path / "n.h5", matcher)
    assert (none.done, none.kept) == (0, 0)


def test_damaged_features_of_one_image_leave_out_its_pairs(
    described: Path, names: list[str], matcher: Matcher, tmp_path: Path
) -> None:
    with FeatureStore(described) as features:
        target = np.asarray(features.group("b1.png")["descriptors"]).tobytes()
    data = bytearray(described.read_bytes())
    data[data.find(target) + 5] ^= 3
    described.write_bytes(data)
    report = match_images(exhaustive_pairs(5), names, described, tmp_path / "m.h5", matcher)
    assert report.done == 6
    assert len(report.failed) == 4
    assert all("b1.png" in pair and "is damaged at b1.png" in text for pair, text in report.failed.items())


def test_features_in_hlocs_layout_give_the_same_matches(
    described: Path, names: list[str], matcher: Matcher, tmp_path: Path
) -> None:
    """The writing and the reading code are written from hloc's published layout."""
    with FeatureStore(described) as own, h5py.File(tmp_path / "theirs.h5", "w") as theirs:
        for name in own.names():
            features = own.load(name)
            height, width = features.original_size or features.image_size
            group = theirs.create_group(name)
            group.create_dataset("keypoints", data=own.keypoints(name))
            group.create_dataset("descriptors", data=features.descriptors.T.numpy().astype(np.float16))
            group.create_dataset("scores", data=features.keypoint_scores)
            group.create_dataset("image_size", data=np.array([width, height]))
    for source in (described, tmp_path / "theirs.h5"):
        match_images(exhaustive_pairs(5), names, source, tmp_path / f"m-{source.name}", matcher)
    with h5py.File(tmp_path / "m-f.h5") as one, h5py.File(tmp_path / "m-theirs.h5") as other:
        same = [
            np.mean(one[pair]["matches0"][()] == other[pair]["matches0"][()])
            for pair in ("a1.png/a2.png", "a1.png/sub-a3.png", "b1.png/b2.png")
        ]
        assert min(same) > 0.97
        matches, scores = (one["a1.png"]["sub-a3.png"][key][()] for key in ("matches0", "matching_scores0"))
        assert (matches >= 0).sum() > 20
        assert (scores[matches >= 0] > 0).all()


def test_one_against_many_is_one_by_one(described: Path, names: list[str], matcher: Matcher) -> None:
    with FeatureStore(described) as features:
        loaded = [features.load(name) for name in names]
    results = matcher.match_many(loaded[0], loaded[1:], batch=3)
    assert len(results) == 4
    for other, result in zip(loaded[1:], results, strict=True):
        single = matcher.match_features(loaded[0], other)
        assert result.matches.tolist() == single.matches.tolist()
        assert np.allclose(result.scores, single.scores, atol=1e-5)
        assert (result.size0, result.size1) == (single.size0, single.size1)
    assert len(results[0]) > 30
    assert matcher.match_many(loaded[0], []) == []
    with pytest.raises(InputError, match="batch"):
        matcher.match_many(loaded[0], loaded[1:], batch=0)


def test_processes_of_two_devices_give_the_same(
    described: Path, names: list[str], matcher: Matcher, make_matcher: MakeMatcher, tmp_path: Path
) -> None:
    pairs, options = exhaustive_pairs(5), VerifyOptions()
    match_images(pairs, names, described, tmp_path / "one.h5", matcher, verify=options)
    executor = DeviceExecutor(["cpu", "cpu"])
    match_images(pairs, names, described, tmp_path / "two.h5", make_matcher(), verify=options, executor=executor)
    with MatchStore(tmp_path / "one.h5") as one, MatchStore(tmp_path / "two.h5") as two:
        for first, second in pairs.tolist():
            left, right = (store.load(names[first], names[second]) for store in (one, two))
            assert left.matches.tolist() == right.matches.tolist()
            assert left.geometry == right.geometry
