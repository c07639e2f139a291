"""The whole of scoring with planted detectors, whose answers are known, and with real ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import keyglue
from keyglue.base.errors import InputError
from keyglue.base.types import Features, Matches
from keyglue.images.coordinates import resize_keypoints
from keyglue.matching.nearest_neighbor import match_nearest
from keyglue.multiview.homography import warp_points
from keyglue.scoring import score
from keyglue.scoring.methods import Detector, Method, classical_methods, model_methods
from keyglue.scoring.pairs import HomographyTruth, PairSet, Picture, ScoredPair
from keyglue.scoring.warps import warps

SIZE = (1200, 1600)
HOMOGRAPHIES = [
    np.array([[1.0, 0, 30], [0, 1, -20], [0, 0, 1]]),
    np.array([[0.9, -0.1, 120], [0.12, 0.95, 30], [3e-5, -5e-5, 1]]),
]


class Planted:
    """Two pairs of pictures and a detector that knows where their points are.

    A picture's gray value is its number. Descriptors are the points' own, so that nearest neighbours are right.
    """

    def __init__(self, shift: float = 0.0, wrong: int = 0) -> None:
        generator = np.random.default_rng(0)
        first = generator.uniform((150, 150), (1300, 1000), (100, 2))
        self.points: list[np.ndarray] = []
        for H in HOMOGRAPHIES:
            # Shifts are meant in the reference frame, which is smaller than the pictures.
            self.points += [first, warp_points(H, first) + np.array([shift * 1600 / 1024, 0])]
        self.codes = [torch.from_numpy(generator.normal(size=(100, 32))).float()] * 4
        for index in (1, 3):
            self.codes[index] = torch.cat([self.codes[index][:wrong].flip(0), self.codes[index][wrong:]])
        self.calls = 0

    def extract(self, image: torch.Tensor) -> Features:
        self.calls += 1
        number = round(float(image[0, 0, 0]) * 255)
        size = (image.shape[1], image.shape[2])
        points = resize_keypoints(self.points[number], SIZE, size)
        return Features(keypoints=torch.from_numpy(points).float(), descriptors=self.codes[number], image_size=size)

    def pairs(self) -> PairSet:
        pictures = [
            Picture(name=str(number), read=lambda number=number: torch.full((1, *SIZE), float(number)))
            for number in range(4)
        ]
        pairs = [
            ScoredPair(
                name=f"pair {index}",
                image0=pictures[2 * index],
                image1=pictures[2 * index + 1],
                truth=HomographyTruth(H=HOMOGRAPHIES[index]),
                group="ab"[index],
            )
            for index in range(2)
        ]
        return PairSet(name="planted", pairs=pairs, rule="Planted.")

    def method(self, name: str = "planted", **options: Any) -> Method:
        detector = options.pop("detector", None) or Detector(name="planted", extract=self.extract)

        def match(first: Features, second: Features) -> Matches:
            return match_nearest(first.descriptors, second.descriptors)

        return Method(name=name, detector=detector, match=match, **options)


@pytest.mark.parametrize("resize", [None, 640, 1600])
def test_a_perfect_matcher_scores_one_hundred_percent_whatever_size_it_sees(resize: int | None) -> None:
    planted = Planted()
    report = score(planted.pairs(), methods=[planted.method()], resize=resize)
    summary = report.summary("planted")
    assert summary["pairs"] == 2
    assert summary["matches"] == summary["correct@1px"] == 100
    assert summary["precision@1px"] == summary["fine_share"] == 1.0
    for name in ("auc_dlt", "auc_opencv", "auc_poselib"):
        assert summary[name] == pytest.approx([1, 1, 1, 1], abs=2e-3)
    detector = report.detectors[0]["summary"]
    assert detector["repeatability@1px"] == 1.0
    assert detector["localisation@1px"] < 1e-3
    assert planted.calls == 4
    assert report.pairs[0]["sizes"] == [SIZE, SIZE]
    assert report.pairs[0]["reference_sizes"] == [(768, 1024), (768, 1024)]


def test_a_planted_error_scores_what_the_formula_says_in_the_reference_frame() -> None:
    planted = Planted(shift=2.5)
    report = score(planted.pairs(), methods=[planted.method()], resize=512)
    translation = report.methods[0]["groups"]["a"]
    assert [translation[f"precision@{limit}px"] for limit in (1, 3, 5)] == [0, 1, 1]
    assert report.pairs[0]["methods"]["planted"]["error_dlt"] == pytest.approx(2.5, abs=1e-3)
    by_hand = [0, (2.5 / 2 + 0.5) / 3, (2.5 / 2 + 2.5) / 5, (2.5 / 2 + 7.5) / 10]
    assert translation["auc_dlt"] == pytest.approx(by_hand, abs=1e-3)


def test_kept_is_the_share_of_the_reference_s_correct_matches() -> None:
    planted = Planted(wrong=20)  # the ten first points change places with the ten after them
    reference = planted.method("reference", is_reference=True)
    half = Method(
        name="half",
        detector=reference.detector,
        match=lambda first, second: _only_every_second(match_nearest(first.descriptors, second.descriptors)),
    )
    other = Planted().method("other", detector=Detector(name="other", extract=Planted().extract))
    report = score(planted.pairs(), methods=[reference, half, other])
    assert report.summary("reference")["precision@3px"] == 0.8
    assert report.summary("reference")["kept"] == 1.0
    assert report.summary("half")["kept"] == 0.5
    assert "kept" not in report.summary("other")
    assert report.pairs[0]["methods"]["half"]["kept_of"] == 80


def _only_every_second(matches: Matches) -> Matches:
    chosen = torch.arange(len(matches.matches0)) % 2 == 0
    matches.matches0[~chosen] = -1
    return matches


def test_limit_is_spread_over_the_set_and_said_in_the_report() -> None:
    planted = Planted()
    assert [pair.name for pair in planted.pairs().limited(1).pairs] == ["pair 0"]
    report = score(planted.pairs(), methods=[planted.method()], limit=1)
    assert len(report.pairs) == 1
    assert report.rule.startswith("1 of 2 pairs only.")
    assert report.methods[0]["groups"] == {}


def test_a_failed_estimation_is_null_in_json(tmp_path: Path) -> None:
    planted = Planted()
    planted.codes[1] = torch.zeros(0, 32)
    planted.points[1] = np.zeros((0, 2))
    report = score(planted.pairs(), methods=[planted.method()])
    assert report.pairs[0]["methods"]["planted"]["error_dlt"] == float("inf")
    report.save_json(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["pairs"][0]["methods"]["planted"]["error_dlt"] is None
    assert saved["methods"][0]["summary"]["matches"] == 50
    assert saved == json.loads(json.dumps(report.to_dict()))


def test_methods_need_names_of_their_own() -> None:
    planted = Planted()
    with pytest.raises(InputError, match="names of their own"):
        score(planted.pairs(), methods=[planted.method(), planted.method()])
    with pytest.raises(InputError, match="names of their own"):
        score(planted.pairs(), methods=[planted.method("one"), planted.method("two")])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dataset": "nothing", "data": "."}, "oxford_affine"),
        ({"dataset": "homogr"}, "folder"),
        ({"dataset": "homogr", "data": "no/such/folder"}, "does not exist"),
        ({"dataset": "homogr", "data": ".", "max_keypoints": 0}, "max_keypoints"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        score(**arguments)


@pytest.fixture(scope="module")
def report(assets: Path) -> keyglue.scoring.ScoreReport:
    pairs = warps(assets, difficulty=0.3).limited(2)
    return score(pairs, baselines=True, all_layers=True, max_keypoints=256, resize=320, device="cpu")


def test_the_bundled_model_and_the_baselines_are_scored_in_one_table(report: keyglue.scoring.ScoreReport) -> None:
    names = [method["name"] for method in report.methods]
    assert names == [
        "keyglue-small",
        "keyglue-small, one view",
        "keyglue-small, one view, all layers",
        "mutual nearest",
        "mutual nearest, ratio 0.9",
        "SIFT, ratio 0.8",
        "SIFT, ratio 0.85",
        "ORB, ratio 0.8",
    ]
    assert [detector["name"] for detector in report.detectors] == ["superpoint", "SIFT", "ORB"]
    for name in names:
        summary = report.summary(name)
        assert 20 < summary["keypoints"] <= 256
        assert 0.3 < summary["precision@5px"] <= 1
        assert len(summary["auc_poselib"]) == 4
    assert report.summary("keyglue-small, one view")["kept"] > 0.5
    assert "kept" not in report.summary("keyglue-small")  # it may have other keypoints
    assert report.summary("mutual nearest")["kept"] == 1.0
    complete = report.summary("keyglue-small, one view, all layers")
    assert complete["stop_layer"] == 6
    assert complete["pruned"] == 0
    with pytest.raises(KeyError, match="no method is called 'nothing'"):
        report.summary("nothing")


def test_markdown_holds_tables_settings_versions_and_machine(
    report: keyglue.scoring.ScoreReport, tmp_path: Path
) -> None:
    report.save_markdown(tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Scores on warps\n")
    assert f"| {100 * report.summary('SIFT, ratio 0.8')['fine_share']:.1f} |" in text
    for expected in ("keyglue.scoring.score('warps', ...)", f"keyglue {keyglue.__version__}", torch.__version__, "cpu"):
        assert expected in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 8 + 2 + 3
    assert len({row.count("|") for row in rows[:10]}) == 1


def test_scoring_again_gives_the_same_numbers(report: keyglue.scoring.ScoreReport, assets: Path) -> None:
    pairs = warps(assets, difficulty=0.3).limited(2)
    again = score(pairs, baselines=True, max_keypoints=256, resize=320, device="cpu")

    def numbers(one: keyglue.scoring.ScoreReport, name: str) -> dict[str, Any]:
        return {key: value for key, value in one.summary(name).items() if not key.startswith("ms")}

    for name in ("keyglue-small", "SIFT, ratio 0.85", "ORB, ratio 0.8"):
        assert numbers(again, name) == numbers(report, name)


def test_a_loaded_model_keeps_its_settings_and_is_left_alone(small: keyglue.LightGlueForKeypointMatching) -> None:
    before = copy.deepcopy(small.config.to_dict())
    options: Any = {"max_keypoints": 100, "baselines": False, "device": None, "dtype": None}
    searched, plain, complete = model_methods(small, all_layers=True, **options)
    assert searched.views is not None
    assert plain.views is None
    assert complete.views is None
    assert searched.detector is plain.detector
    assert small.config.to_dict() == before
    assert plain.detector is complete.detector
    assert complete.settings["depth_confidence"] == -1
    assert plain.settings["weights"] == complete.settings["weights"]
    assert plain.detector.settings["max_keypoints"] == small.keypoint_detector.config.max_keypoints


def test_orb_matches_are_those_of_opencv(photographs: dict[str, torch.Tensor]) -> None:
    orb = classical_methods(300)[-1]
    first, second = (orb.detector.extract(photographs[f"motorcycle_{side}"]) for side in ("left", "right"))
    ours = orb.match(first, second).indices.tolist()
    bits = [np.packbits(one.descriptors.numpy().astype(np.uint8), axis=1) for one in (first, second)]

    def passes(query: np.ndarray, train: np.ndarray) -> dict[int, int]:
        found = cv2.BFMatcher(cv2.NORM_HAMMING).knnMatch(query, train, k=2)
        return {a.queryIdx: a.trainIdx for a, b in found if a.distance < 0.8 * b.distance}

    there, back = passes(*bits), passes(*bits[::-1])
    expected = {(i, j) for i, j in there.items() if back.get(j) == i}
    assert len(expected) > 20
    assert set(map(tuple, ours)) == expected
