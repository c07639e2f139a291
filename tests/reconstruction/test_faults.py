"""Killed, out of room, started twice: nothing that was done is lost, and the message is clear."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from PIL import Image

from keyglue.base.errors import StoreError
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.extract import extract_images, find_images
from keyglue.reconstruction.match import match_images
from keyglue.reconstruction.pairs import exhaustive_pairs
from keyglue.reconstruction.store import FeatureStore, MatchStore
from keyglue.reconstruction.verify import VerifyOptions

# Runs one stage and prints a line for every image or chunk of pairs; committed at once, so that a kill finds something.
STAGE = """
import json, sys
from pathlib import Path
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction import match as matching
from keyglue.reconstruction.container import Container
from keyglue.reconstruction.extract import extract_images, find_images
from keyglue.reconstruction.match import match_images
from keyglue.reconstruction.pairs import exhaustive_pairs
from keyglue.reconstruction.verify import VerifyOptions

Container.__init__.__kwdefaults__["commit_seconds"] = 0
matching._CHUNK = 1
what, folder = sys.argv[1], Path(sys.argv[2])
matcher = Matcher.from_pretrained(device="cpu", resize=240, max_keypoints=96)
names = find_images(folder / "photos")

def say(*what):
    print(json.dumps(what), flush=True)

if what == "extract":
    extract_images(folder / "photos", names, folder / "f.h5", matcher, progress=say)
else:
    pairs = exhaustive_pairs(len(names))
    match_images(pairs, names, folder / "f.h5", folder / "m.h5", matcher, verify=VerifyOptions(), progress=say)
"""


@pytest.fixture
def many(photos: Path) -> Path:
    """The folder above a folder of photographs, ten of them."""
    with Image.open(photos / "a1.png") as picture:
        for index in range(5):
            picture.crop((10 * index, 0, 300 + 10 * index, 240)).save(photos / f"c{index}.png")
    return photos.parent


def run_and_kill(stage: str, folder: Path, after: int) -> int:
    """Start a stage, kill it once it has done so many things, and return how many those were."""
    process = subprocess.Popen([sys.executable, "-c", STAGE, stage, str(folder)], stdout=subprocess.PIPE, text=True)
    done = 0
    try:
        assert process.stdout is not None
        for line in process.stdout:
            _, done, total = json.loads(line)
            assert done < total, "it was quicker than the kill"
            if done >= after:
                break
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return done


def test_killed_during_extraction(many: Path, matcher: Matcher, tmp_path: Path) -> None:
    names = find_images(many / "photos")
    done = run_and_kill("extract", many, 3)
    with FeatureStore(many / "f.h5") as store:  # what a reader finds, even before the next writer
        assert done <= len(store.names()) < 10
    report = extract_images(many / "photos", names, many / "f.h5", matcher)
    assert report.kept >= done
    assert report.kept + report.done == 10
    extract_images(many / "photos", names, tmp_path / "whole.h5", matcher)
    with FeatureStore(many / "f.h5") as found, FeatureStore(tmp_path / "whole.h5") as whole:
        assert found.names() == whole.names()
        assert all(found.digest(name) == whole.digest(name) for name in names)
        assert all(len(found.load(name)) == len(whole.load(name)) for name in names)


def test_killed_during_matching(many: Path, matcher: Matcher, tmp_path: Path) -> None:
    names = find_images(many / "photos")
    extract_images(many / "photos", names, many / "f.h5", matcher)
    done = run_and_kill("match", many, 7)
    pairs, options = exhaustive_pairs(10), VerifyOptions()
    with MatchStore(many / "m.h5") as store:
        assert done <= len(list(store.pairs())) < 45
    report = match_images(pairs, names, many / "f.h5", many / "m.h5", matcher, verify=options)
    assert report.kept >= done
    assert report.kept + report.done == 45
    match_images(pairs, names, many / "f.h5", tmp_path / "whole.h5", matcher, verify=options)
    with MatchStore(many / "m.h5") as found, MatchStore(tmp_path / "whole.h5") as whole:
        for first, second in pairs.tolist():
            left, right = (store.load(names[first], names[second]) for store in (found, whole))
            assert left.matches.tolist() == right.matches.tolist()
            assert left.geometry == right.geometry


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system with little room; the test is skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_done_and_goes_on_with_more_room(
    many: Path, matcher: Matcher, small_disk: Path, tmp_path: Path
) -> None:
    names, store = find_images(many / "photos"), small_disk / "f.h5"
    extract_images(many / "photos", names, tmp_path / "whole.h5", matcher)
    extract_images(many / "photos", names[:2], store, matcher)
    with pytest.raises(StoreError, match=r"cannot write .*f\.h5: .*No space left.* make room"):
        extract_images(many / "photos", names, store, matcher)
    assert sorted(os.listdir(small_disk)) == ["f.h5"]
    with FeatureStore(store) as features:
        assert features.names()[:2] == names[:2]
        assert len(features.load(names[0])) > 30
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    report = extract_images(many / "photos", names, store, matcher)
    assert report.kept >= 2
    with FeatureStore(store) as found, FeatureStore(tmp_path / "whole.h5") as whole:
        assert all(found.digest(name) == whole.digest(name) for name in names)


def test_the_same_store_started_twice_at_once(many: Path, matcher: Matcher) -> None:
    names = find_images(many / "photos")
    other = subprocess.Popen([sys.executable, "-c", STAGE, "extract", str(many)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        other.stdout.readline()  # it has begun
        with pytest.raises(StoreError, match=rf"f\.h5 is being written by process {other.pid}\. Wait until it is done"):
            extract_images(many / "photos", names, many / "f.h5", matcher)
        other.stdout.read()
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
        other.wait()
        if other.stdout is not None:
            other.stdout.close()
    assert extract_images(many / "photos", names, many / "f.h5", matcher).kept == 10
