"""The benchmark of viewpoints runs from start to end, and judges by the homography that it drew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.mark.slow
def test_turned_photographs(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "viewpoints.py"), "--photographs", "1", "--only", "turned"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "a")], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == done.stdout
    assert "from aside" not in done.stdout
    results = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["results"]["turned, degrees"]
    assert [results[degrees]["match"]["found"] for degrees in ("20", "45", "90", "135")] == [1, 1, 1, 1]
    assert results["135"]["one look"]["matches"] < 20 < results["135"]["match"]["matches"]
