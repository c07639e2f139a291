"""The benchmark of truths finds out which homographies of a set are wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.mark.slow
def test_a_wrong_homography_is_told_from_a_right_one(assets: Path, tmp_path: Path) -> None:
    image = np.asarray(cv2.imread(str(assets / "coffee.png")))
    height, width = image.shape[:2]
    right = np.array([[0.95, 0.05, 12.0], [-0.04, 1.02, -5.0], [5e-5, -4e-5, 1.0]])
    wrong = np.array([[1.0, 0, 4.0], [0, 1.0, -3.0], [0, 0, 1.0]]) @ right
    cv2.imwrite(str(tmp_path / "0.png"), image)
    cv2.imwrite(str(tmp_path / "1.png"), cv2.warpPerspective(image, right, (width, height), flags=cv2.INTER_CUBIC))
    pairs = [
        {"name": name, "image0": "0.png", "image1": "1.png", "H": H.tolist()}
        for name, H in (("right", right), ("wrong", wrong))
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    command = [sys.executable, str(FOLDER / "truth.py"), "homographies", "--data", str(tmp_path)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "a")], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == done.stdout
    results = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["results"]
    good, bad = results["pairs"]["right"], results["pairs"]["wrong"]
    assert max(good["keyglue"], good["sift"], good["between"], bad["between"]) < 0.5
    assert abs(bad["keyglue"] - 5) < 0.5
    assert abs(bad["sift"] - 5) < 0.5
    assert bad["alike_truth"] < 0.9 * bad["alike_keyglue"]
    assert good["alike_truth"] > 0.98 * max(good["alike_keyglue"], good["alike_sift"])
    assert results["auc"]["10"] > 0.7
