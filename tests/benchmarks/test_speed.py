"""Each benchmark of speed runs from start to end on tiny settings, and counts operations rightly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


def run(name: str, out: Path, *arguments: str) -> tuple[str, dict]:
    """Run a benchmark for one round; return what it prints and its JSON."""
    command = [sys.executable, str(FOLDER / name), "--rounds", "1", "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert out.with_suffix(".md").read_text(encoding="utf-8") == done.stdout
    return done.stdout, json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


def test_latency(tmp_path):
    parts = ["extract", "match", "pairs", "batch"]
    sizes = ["--sizes", "96x128", "64x64", "--points", "16", "--batches", "1", "2"]
    text, found = run("latency.py", tmp_path / "a", "--only", *parts, *sizes)
    assert list(found["results"]) == parts
    assert "| 16 + 16 points |" in text
    assert found["results"]["match"]["16 + 16 points"]["quick"]["median_cpu"] > 0
    assert found["about"]["threads"] == 1


def test_roofline(tmp_path):
    text, found = run("roofline.py", tmp_path / "b", "--sizes", "96x128", "--points", "16")
    assert "GFLOP/s" in text
    assert not any(str(folder) in text for folder in (tmp_path, Path.home(), FOLDER)), "results name no folders"
    assert found["results"]["rates"]["float32"] > 1
    # A row for each path and type: without the kernels of keyglue-native, and with them where they are installed.
    assert list(dict.fromkeys(row[0] for row in found["results"]["rows"])) == ["SuperPoint 96x128", "LightGlue 16 + 16"]


@pytest.mark.slow
def test_peers(tmp_path):
    """With those peers that are installed."""
    sizes = ["--sizes", "96x128", "--keypoints", "16", "--points", "16"]
    _, found = run("peers.py", tmp_path / "c", *sizes)
    detector, matcher, pair = found["results"].values()
    assert {"keyglue float32", "keyglue reference float32"} <= set(detector) & set(matcher) & set(pair)
    for work in (detector, matcher, pair):
        for peer, values in work.items():
            # transformers finds other keypoints; random weights make another match of every difference in rounding.
            differs = work is pair and ("transformers" in peer or "bfloat16" in peer)
            assert values["same"] > 0.9 or differs, peer
            assert values["median_cpu"] > 0


def test_kept_to_an_instruction_set(tmp_path):
    arguments = ["--isa", "avx2", "--sizes", "64x64", "--points", "16"]
    _, found = run("roofline.py", tmp_path / "d", *arguments)
    assert found["about"]["KEYGLUE_ISA"] == "avx2"
    assert found["about"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert [row[1] for row in found["results"]["rows"]][-1] == "keyglue float32"


def test_lists_of_pairs_hold_what_their_names_say(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    pair_lists = pytest.importorskip("pair_lists")
    easy, hard = pair_lists.read_list("easy"), pair_lists.read_list("hard")
    assert min(overlap for *_, overlap in easy) >= 0.6
    assert max(overlap for *_, overlap in hard) <= 0.2
    for found in (easy, hard):
        assert len({(first, second) for first, second, _ in found}) == len(found) == 24
        for scene in pair_lists.SCENES:
            assert sum(first.startswith(scene) and second.startswith(scene) for first, second, _ in found) == 8


def test_operations_are_those_of_the_published_architectures(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    roofline = pytest.importorskip("roofline")
    assert roofline.superpoint_operations((480, 640)) == pytest.approx(52.1e9, rel=0.01)
    assert roofline.lightglue_operations(1024, 1024) == pytest.approx(85.4e9, rel=0.01)
