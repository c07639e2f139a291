"""Killed, out of room, started twice: nothing that was done is lost, and the message is clear."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keyglue.base.errors import KeyglueError, StoreError
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.choose import PairOptions
from keyglue.reconstruction.executor import DeviceExecutor
from keyglue.reconstruction.extract import extract_images, find_images
from keyglue.reconstruction.match import match_images
from keyglue.reconstruction.pairs import exhaustive_pairs
from keyglue.reconstruction.reconstruct import ReconstructOptions, reconstruct
from keyglue.reconstruction.store import FeatureStore, MatchStore

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")

OPTIONS = ReconstructOptions(
    devices=("cpu",), resize=240, max_keypoints=96, min_overlap=0, pairs=PairOptions(choice="exhaustive")
)

# Reconstructs a folder. After every image or pair it says so and waits for a line before it goes on, so that however
# busy the machine is, it is in the middle of its work when it is killed.
STEPWISE = """
import json, sys
from pathlib import Path
from keyglue.reconstruction import match as matching
from keyglue.reconstruction.choose import PairOptions
from keyglue.reconstruction.container import Container
from keyglue.reconstruction.reconstruct import ReconstructOptions, reconstruct

Container.__init__.__kwdefaults__["commit_seconds"] = 0
matching._CHUNK = 1
options = ReconstructOptions(
    devices=("cpu",), resize=240, max_keypoints=96, min_overlap=0, pairs=PairOptions(choice="exhaustive")
)

def step(*what):
    print(json.dumps(what), flush=True)
    sys.stdin.readline()

reconstruct(Path(sys.argv[1]), Path(sys.argv[2]), options, progress=step)
"""


@contextmanager
def stopped_at(stage: str, count: int, images: Path, output: Path) -> Generator[subprocess.Popen[str]]:
    """Yield a process that reconstructs a folder and waits once it has done so many things of a stage."""
    with subprocess.Popen(
        [sys.executable, "-c", STEPWISE, str(images), str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                found, done, total = json.loads(line)
                if (found, done) == (stage, count):
                    assert done < total
                    break
                process.stdin.write("\n")
                process.stdin.flush()
            else:
                pytest.fail(f"it ended before it had done {count} things of {stage}")
            yield process
        finally:
            process.kill()


def kill_while_working(process: subprocess.Popen[str]) -> None:
    """Let a process go on that waits, and kill it in the middle of the next step."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_started_twice_at_once_and_killed_while_describing(
    photos: Path, names: list[str], matcher: Matcher, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    with stopped_at("extract", 3, photos, model) as process:
        holder = rf"being written by process {process.pid}\. Wait until it is done, or give another place"
        with pytest.raises(StoreError, match=f"model is {holder}"):
            reconstruct(photos, model, OPTIONS)
        with pytest.raises(StoreError, match=rf"features\.h5 is {holder}"):
            extract_images(photos, find_images(photos), model / "features.h5", matcher)
        kill_while_working(process)
    with FeatureStore(model / "features.h5") as store:  # what a reader finds, even before the next writer
        assert 3 <= len(store.names()) <= 4
    report = extract_images(photos, find_images(photos), model / "features.h5", matcher)
    assert 3 <= report.kept <= 4
    assert report.kept + report.done == 5
    extract_images(photos, names, tmp_path / "whole.h5", matcher)
    with FeatureStore(model / "features.h5") as found, FeatureStore(tmp_path / "whole.h5") as whole:
        assert found.names() == whole.names()
        assert all(found.digest(name) == whole.digest(name) for name in names)
        assert all(len(found.load(name)) == len(whole.load(name)) for name in names)


def test_killed_while_matching(photos: Path, matcher: Matcher, tmp_path: Path) -> None:
    model, names, pairs = tmp_path / "model", find_images(photos), exhaustive_pairs(5)
    with stopped_at("match", 4, photos, model) as process:
        kill_while_working(process)
    with MatchStore(model / "matches.h5") as store:
        assert 4 <= len(list(store.pairs())) <= 5
    features = model / "features.h5"
    report = match_images(pairs, names, features, model / "matches.h5", matcher, verify=OPTIONS.verify)
    assert 4 <= report.kept <= 5
    assert report.kept + report.done == 10
    match_images(pairs, names, features, tmp_path / "whole.h5", matcher, verify=OPTIONS.verify)
    with MatchStore(model / "matches.h5") as found, MatchStore(tmp_path / "whole.h5") as whole:
        for first, second in pairs.tolist():
            left, right = (store.load(names[first], names[second]) for store in (found, whole))
            assert left.matches.tolist() == right.matches.tolist()
            assert left.geometry == right.geometry


def test_the_process_of_a_device_is_killed(photos: Path, make_matcher: Callable[..., Matcher], tmp_path: Path) -> None:
    for name in ("a1.png", "a2.png", "b1.png", "b2.png"):
        for copy in range(3):
            shutil.copy(photos / name, photos / f"{copy}{name}")
    names, store = find_images(photos), tmp_path / "f.h5"

    def kill(_: str, done: int, __: int) -> None:
        if done == 2:
            [process] = multiprocessing.active_children()
            process.kill()

    with pytest.raises(KeyglueError, match=r"process of a device was killed by signal 9, perhaps for want of memory"):
        extract_images(photos, names, store, make_matcher(), executor=DeviceExecutor(["cpu"]), progress=kill)
    with FeatureStore(store) as found:
        assert 2 <= len(found.names()) < len(names)
        assert all(len(found.load(name)) > 30 for name in found.names())


# Fills a disk with the features of images, makes room, and goes on. Prints what it met, as one line of JSON.
FILL = """
import json, os, resource, shutil, subprocess, sys
from pathlib import Path
import torch
from keyglue.base.errors import StoreError
from keyglue.base.types import Features
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.store import FeatureStore

means, folder, result = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if means == "disk":  # in a mount namespace of its own, which ends with this process
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

def write():
    with FeatureStore(folder / "f.h5", {"kind": "features"}, commit_seconds=0) as store:
        kept = store.names()
        for index in range(8):
            if f"{index}.jpg" not in kept:
                generator = torch.Generator().manual_seed(index)
                points, words = (torch.rand(96, size, generator=generator) for size in (2, 256))
                features = Features(keypoints=points, descriptors=words, image_size=(100, 100))
                store.save(f"{index}.jpg", features, ImageRecord(size=(100, 100)))
    return kept

error = ""
try:
    write()
except StoreError as found:
    error = str(found)
met = {"error": error, "files": sorted(os.listdir(folder))}
with FeatureStore(folder / "f.h5") as store:
    met["names"] = store.names()
    met["keypoints"] = [len(store.load(name)) for name in store.names()]
if means == "disk":
    subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
met["kept"] = write()
shutil.copy(folder / "f.h5", result)
print(json.dumps(met))
"""


@pytest.mark.parametrize(("means", "reason"), [("disk", "No space left on device"), ("limit", "File too large")])
def test_a_full_disk_keeps_what_was_done_and_goes_on_with_more_room(tmp_path: Path, means: str, reason: str) -> None:
    """Once with a small file system, where one may be mounted, and once with a limit to the size of a file."""
    (tmp_path / "small").mkdir()
    prefix = own_mounts(tmp_path / "small") if means == "disk" else []
    command = [*prefix, sys.executable, "-c", FILL, means, str(tmp_path / "small"), str(tmp_path / "f.h5")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    met = json.loads(done.stdout)
    assert reason in met["error"]
    assert met["error"].startswith(f"cannot write {tmp_path / 'small' / 'f.h5'}: ")
    assert met["error"].endswith("kept; make room, then run the same command again.")
    assert met["files"] == ["f.h5"]
    assert 2 <= len(met["names"]) < 8
    assert met["keypoints"] == [96] * len(met["names"])
    assert met["kept"] == met["names"]  # nothing that was there is written again
    with FeatureStore(tmp_path / "f.h5") as store:
        assert [len(store.load(name)) for name in store.names()] == [96] * 8
    if means == "disk":
        assert os.listdir(tmp_path / "small") == []  # the file system went with the process


def own_mounts(folder: Path) -> list[str]:
    """Return what to put before a command, so that it may mount a file system that ends with it."""
    for prefix in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        trial = [*prefix, "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
        if shutil.which("unshare") and subprocess.run(trial, capture_output=True, check=False).returncode == 0:
            return prefix
    pytest.skip("no file system may be mounted here")
