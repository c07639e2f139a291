"""Every measure against a case that is computed by hand, and against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from keyglue.multiview.cameras import Camera
from keyglue.multiview.homography import corner_error, dlt_homography, warp_points
from keyglue.scoring.pairs import HomographyTruth, PoseTruth
from keyglue.scoring.protocols import (
    Found,
    match_errors,
    measure_geometry,
    measure_keypoints,
    measure_matches,
    robust_estimators,
)
from keyglue.scoring.summary import by_group, summarise_detector, summarise_method

SIZE = (480, 640)
H = np.array([[0.9, -0.2, 60.0], [0.15, 1.05, -20.0], [1e-4, -2e-4, 1.0]])


def make_found(points0: np.ndarray, points1: np.ndarray, scores: np.ndarray | None = None) -> Found:
    """Matches of points in a shuffled order, so that indices matter."""
    order = np.random.default_rng(5).permutation(len(points0))
    matches = np.stack([order, np.arange(len(points0))], axis=1)
    return Found(
        keypoints0=points0[np.argsort(order)],
        keypoints1=points1,
        matches=matches,
        scores=np.ones(len(points0)) if scores is None else scores,
    )


def some_points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform((5, 5), (635, 475), (count, 2))


def test_perfect_matches_of_a_homography_score_one_hundred_percent() -> None:
    points0 = some_points(200)
    truth = HomographyTruth(H=H)
    found = make_found(points0, warp_points(H, points0))
    errors = match_errors(found, truth)
    assert errors.max() < 1e-9
    record = {**measure_matches(found, errors), **measure_geometry(found, truth, SIZE, robust_estimators())}
    assert record["precision@1px"] == 1.0
    assert record["correct@1px"] == record["matches"] == 200
    assert set(record) >= {"error_dlt", "error_opencv", "error_poselib"}
    assert max(value for name, value in record.items() if name.startswith("error_")) < 1e-3
    summary = summarise_method([record, record], "homography")
    assert summary["auc_dlt"] == pytest.approx([1, 1, 1, 1], abs=1e-6)
    assert summary["auc_poselib"] == pytest.approx([1, 1, 1, 1], abs=1e-3)
    assert summary["fine_share"] == 1.0


def test_a_shift_scores_what_the_formula_says() -> None:
    points0 = some_points(100)
    truth = HomographyTruth(H=np.array([[1.0, 0, 30], [0, 1, 40], [0, 0, 1]]))
    found = make_found(points0, points0 + np.array([30 + 1.5, 40 - 2.0]))  # 2.5 px off
    errors = match_errors(found, truth)
    np.testing.assert_allclose(errors, 2.5)
    record = {**measure_matches(found, errors), **measure_geometry(found, truth, SIZE, robust_estimators())}
    assert [record[f"precision@{limit}px"] for limit in (1, 3, 5)] == [0, 1, 1]
    for name in ("dlt", "opencv", "poselib"):
        assert record[f"error_{name}"] == pytest.approx(2.5, abs=1e-3)
    # One error of 2.5: a straight line to (2.5, 1), then level. Four of them: the line ends at (2.5, 1/4), then a jump.
    by_hand = [0, (2.5 / 2 + 0.5) / 3, (2.5 / 2 + 2.5) / 5, (2.5 / 2 + 7.5) / 10]
    assert summarise_method([record], "homography")["auc_dlt"] == pytest.approx(by_hand, abs=1e-6)
    by_hand = [0, (2.5 / 8 + 0.5) / 3, (2.5 / 8 + 2.5) / 5, (2.5 / 8 + 7.5) / 10]
    assert summarise_method([record] * 4, "homography")["auc_dlt"] == pytest.approx(by_hand, abs=1e-6)


def test_match_error_is_the_mean_of_both_directions() -> None:
    truth = HomographyTruth(H=np.diag([2.0, 2.0, 1.0]))
    points0 = some_points(20)
    errors = match_errors(make_found(points0, 2 * points0 + (0, 3)), truth)
    np.testing.assert_allclose(errors, (3 + 1.5) / 2)


def test_auc_counts_failures_and_follows_the_hand_computed_curve() -> None:
    records = [{"keypoints": [9, 9], "matches": 1, "error_dlt": error} for error in (4.0, float("inf"), 1.0)]
    summary = summarise_method(records, "homography")
    # At 5 px: to (1, 1/3), to (4, 2/3), level to 5.
    assert summary["auc_dlt"][2] == pytest.approx((1 / 6 + 3 * (1 / 3 + 2 / 3) / 2 + 2 / 3) / 5)
    assert summary["auc_dlt"][0] == 0.0


def test_no_matches_is_a_failure_with_precision_zero() -> None:
    found = Found(
        keypoints0=some_points(7),
        keypoints1=some_points(5),
        matches=np.zeros((0, 2), dtype=np.int64),
        scores=np.zeros(0),
    )
    truth = HomographyTruth(H=H)
    record = {**measure_matches(found, match_errors(found, truth)), **measure_geometry(found, truth, SIZE, ["opencv"])}
    assert record["keypoints"] == [7, 5]
    assert record["precision@5px"] == 0.0
    assert record["error_dlt"] == record["error_opencv"] == float("inf")
    assert summarise_method([record], "homography")["auc_opencv"] == [0, 0, 0, 0]


def test_dlt_uses_the_scores_and_agrees_with_opencv_on_all_points() -> None:
    noise = np.random.default_rng(1).normal(0, 0.5, (300, 2))
    points0 = some_points(300)
    points1 = warp_points(H, points0) + noise
    ours = dlt_homography(points0, points1, np.ones(300))
    theirs, _ = cv2.findHomography(points0, points1, 0)
    assert corner_error(ours, theirs, SIZE) < 0.1
    points1[:100] += 50  # wrong ones, with a score of zero
    scores = np.where(np.arange(300) < 100, 0.0, 0.7)
    truth = HomographyTruth(H=H)
    weighted = measure_geometry(make_found(points0, points1, scores), truth, SIZE, [])["error_dlt"]
    theirs, _ = cv2.findHomography(points0[100:], points1[100:], 0)
    assert weighted == pytest.approx(corner_error(theirs, H, SIZE), abs=0.1)
    assert measure_geometry(make_found(points0, points1), truth, SIZE, [])["error_dlt"] > 10 * weighted


def test_robust_homography_agrees_with_opencv_among_wrong_matches() -> None:
    generator = np.random.default_rng(2)
    points0 = some_points(400)
    points1 = warp_points(H, points0) + generator.normal(0, 0.3, (400, 2))
    points1[:160] = some_points(160, seed=3)
    found = measure_geometry(make_found(points0, points1), HomographyTruth(H=H), SIZE, ["opencv", "poselib"])
    theirs, _ = cv2.findHomography(points0, points1, cv2.USAC_MAGSAC, 3.0)
    for name in ("opencv", "poselib"):
        assert found[f"error_{name}"] == pytest.approx(corner_error(theirs, H, SIZE), abs=0.3)
        assert found[f"error_{name}"] < 0.5


def make_pose(degrees: float = 10.0) -> PoseTruth:
    R, _ = cv2.Rodrigues(np.radians(degrees) * np.array([0.1, 0.97, 0.2]))
    cameras = [Camera(fx=700, fy=710, cx=318, cy=242, width=640, height=480) for _ in range(2)]
    return PoseTruth(R=R, t=np.array([-1.0, 0.1, 0.2]), camera0=cameras[0], camera1=cameras[1])


def project(truth: PoseTruth, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points that lie in front of both cameras, not on a plane, as both see them."""
    space = np.random.default_rng(seed).uniform((-1.5, -1, 4), (1.5, 1, 8), (count, 3))
    return truth.camera0.project(space), truth.camera1.project(space @ truth.R.T + truth.t)


def test_perfect_matches_of_a_pose_score_one_hundred_percent() -> None:
    truth = make_pose()
    found = make_found(*project(truth, 200))
    errors = match_errors(found, truth)
    assert errors.max() < 1e-9
    record = {**measure_matches(found, errors), **measure_geometry(found, truth, SIZE, robust_estimators())}
    assert record["precision@1px"] == 1.0
    assert max(record["error_opencv"], record["error_poselib"]) < 0.05
    assert summarise_method([record], "pose")["auc_poselib"] == pytest.approx([1, 1, 1], abs=0.01)


def test_pose_error_is_the_larger_angle_and_ignores_the_sign_of_the_translation() -> None:
    truth = make_pose()
    found = make_found(*project(truth, 200))
    turn, _ = cv2.Rodrigues(np.radians(7.0) * np.array([0.0, 0.0, 1.0]))
    wrong = PoseTruth(R=turn @ truth.R, t=truth.t, camera0=truth.camera0, camera1=truth.camera1)
    assert measure_geometry(found, wrong, SIZE, ["poselib"])["error_poselib"] == pytest.approx(7, abs=0.05)
    wrong = PoseTruth(R=truth.R, t=-(turn @ truth.t), camera0=truth.camera0, camera1=truth.camera1)
    angle = np.degrees(np.arccos(truth.t @ turn @ truth.t / (truth.t @ truth.t)))
    assert measure_geometry(found, wrong, SIZE, ["poselib"])["error_poselib"] == pytest.approx(angle, abs=0.05)
    # At 5 degrees nothing, at 10 and 20 what the formula says.
    by_hand = [0, (angle / 2 + 10 - angle) / 10, (angle / 2 + 20 - angle) / 20]
    record = {"keypoints": [1, 1], "matches": 1, "error_poselib": float(angle)}
    assert summarise_method([record], "pose")["auc_poselib"] == pytest.approx(by_hand)


def test_robust_pose_agrees_with_opencv_among_wrong_matches() -> None:
    truth = make_pose()
    points0, points1 = project(truth, 400)
    points1 = points1 + np.random.default_rng(4).normal(0, 0.3, (400, 2))
    points1[:150] = some_points(150, seed=6)
    found = measure_geometry(make_found(points0, points1), truth, SIZE, ["opencv", "poselib"])
    K = truth.camera0.matrix
    E, mask = cv2.findEssentialMat(points0, points1, K, cv2.USAC_MAGSAC, 0.999, 1.0)
    _, R, _, _ = cv2.recoverPose(E, points0, points1, K, mask=mask)
    theirs = np.degrees(np.linalg.norm(cv2.Rodrigues(R @ truth.R.T)[0]))
    assert theirs < 0.5
    assert found["error_opencv"] < 1.5
    assert found["error_poselib"] < 1.5


def test_epipolar_error_of_a_rectified_pair_is_the_difference_of_rows() -> None:
    camera = Camera(fx=700, fy=700, cx=320, cy=240, width=640, height=480)
    truth = PoseTruth(R=np.eye(3), t=np.array([-1.0, 0, 0]), camera0=camera, camera1=camera)
    points0 = some_points(30)
    errors = match_errors(make_found(points0, points0 + np.array([-20, 2])), truth)
    np.testing.assert_allclose(errors, 2)


def test_epipolar_error_is_measured_without_lens_distortion() -> None:
    truth = make_pose()
    bent = Camera(fx=700, fy=710, cx=318, cy=242, width=640, height=480, distortion=(-0.2, 0.05))
    distorted = PoseTruth(R=truth.R, t=truth.t, camera0=bent, camera1=bent)
    found = make_found(*project(distorted, 100))
    assert match_errors(found, distorted).max() < 1e-6
    assert match_errors(found, truth).max() > 1


def test_repeatability_of_the_same_points_is_one() -> None:
    points = some_points(50)
    measured = measure_keypoints(points, points[::-1], HomographyTruth(H=np.eye(3)), SIZE, SIZE)
    assert measured["visible"] == [50, 50]
    assert measured["repeatability@1px"] == 1.0
    assert measured["localisation@1px"] == 0.0


def test_repeatability_of_a_translation_counts_visible_points_of_both_images() -> None:
    grid = np.stack(np.meshgrid(np.arange(20.0, 640, 40), np.arange(20.0, 480, 40)), axis=-1).reshape(-1, 2)
    truth = HomographyTruth(H=np.array([[1.0, 0, 200], [0, 1, 0], [0, 0, 1]]))
    # Image 1 has the visible points half a pixel off, ten more that nothing corresponds to, and one outside of image 0.
    inside = grid[grid[:, 0] + 200 < 640]
    more = np.stack([np.full(10, 400.0 + 200), np.arange(20.0, 420, 40) + 20], axis=1)
    keypoints1 = np.concatenate([inside + np.array([200.5, 0]), more, [[100.0, 100.0]]])
    measured = measure_keypoints(grid, keypoints1, truth, SIZE, SIZE)
    count = len(inside)
    assert 0 < count < len(grid)
    assert measured["visible"] == [count, count + 10]
    assert measured["repeatability@1px"] == pytest.approx(2 * count / (2 * count + 10))
    assert measured["localisation@3px"] == pytest.approx(0.5)


def test_repeatability_judges_each_point_in_the_other_image() -> None:
    truth = HomographyTruth(H=np.diag([2.0, 2.0, 1.0]))
    points0 = np.array([[50.0, 50.0], [150.0, 100.0]])
    # 0.8 px of image 0 are 1.6 px of image 1.
    measured = measure_keypoints(points0, 2 * (points0 + np.array([0.8, 0])), truth, SIZE, SIZE)
    assert measured["repeatability@1px"] == 0.5
    assert measured["localisation@1px"] == pytest.approx(0.8)
    assert measured["repeatability@3px"] == 1.0
    assert measured["localisation@3px"] == pytest.approx(1.2)


def test_no_keypoints_repeat_nothing() -> None:
    none = np.zeros((0, 2))
    measured = measure_keypoints(none, some_points(4), HomographyTruth(H=np.eye(3)), SIZE, SIZE)
    assert measured["repeatability@3px"] == 0.0
    assert measured["localisation@3px"] is None
    records = [measured, {**measured, "localisation@3px": 2.0}]
    assert summarise_detector(records)["localisation@3px"] == 2.0
    assert "localisation@1px" not in summarise_detector(records)


def test_groups_are_summed_up_by_themselves() -> None:
    records = [{"keypoints": [10, 20], "matches": count} for count in (1, 2, 6)]
    groups = by_group(["a", "b", "b"], records, lambda some: summarise_method(some, "pose"))
    assert groups["a"]["matches"] == 1
    assert groups["b"] == {"pairs": 2, "keypoints": 15.0, "matches": 4.0}
    assert by_group(["", "", ""], records, lambda some: {}) == {}
