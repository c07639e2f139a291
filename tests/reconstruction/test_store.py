"""Stores on disk: what goes in comes out, hloc's layout both ways, and every way in which a file can be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from keyglue.base.errors import InputError, StoreError
from keyglue.base.types import Features
from keyglue.reconstruction.container import Container
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.store import FeatureStore, MatchStore, PairMatches, check_names

HEADER = {"kind": "features", "weights": "abc"}
SIZE, SEEN = (301, 403), (151, 202)


def some_features(count: int = 50, seed: int = 0, **more: torch.Tensor) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        keypoints=torch.rand(count, 2, generator=generator) * torch.tensor([SEEN[1] - 1.0, SEEN[0] - 1.0]),
        descriptors=torch.nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=1),
        keypoint_scores=torch.rand(count, generator=generator),
        image_size=SEEN,
        original_size=SIZE,
        detector="superpoint",
        **more,
    )


def some_matches() -> PairMatches:
    return PairMatches(
        np.array([[1, 4], [2, 0], [7, 3]]),
        np.array([0.5, 0.25, 1.0], dtype=np.float32),
        np.array([True, False, True]),
        {"config": "UNCALIBRATED", "F": np.eye(3).tolist()},
    )


def test_features_come_back(tmp_path: Path) -> None:
    angles = {"scales": torch.linspace(1, 9, 50), "orientations": torch.linspace(-3, 3, 50)}
    given = some_features(**angles)
    record = ImageRecord(size=SIZE, orientation=6, focal_length=321.5, gps=(48.5, -2.25, 30.0), digest="d")
    with FeatureStore(tmp_path / "f.h5", HEADER) as store:
        store.save("sub/a.jpg", given, record)
        store.save("b.jpg", some_features(0), record)
    with FeatureStore(tmp_path / "f.h5") as store:
        assert store.names() == ["b.jpg", "sub/a.jpg"]
        assert "sub/a.jpg" in store
        assert "sub" not in store
        found = store.load("sub/a.jpg")
        assert store.record("sub/a.jpg") == record
        assert len(store.load("b.jpg")) == 0
        strongest = store.descriptors("sub/a.jpg", 5)
        with pytest.raises(InputError, match=r"holds nothing for c\.jpg"):
            store.load("c.jpg")
    assert torch.allclose(found.keypoints, given.keypoints, atol=1e-4)
    assert torch.allclose(found.descriptors, given.descriptors, atol=1e-3)
    for name in ("keypoint_scores", "scales", "orientations"):
        assert torch.equal(getattr(found, name), getattr(given, name))
    assert (found.image_size, found.original_size, found.detector) == (SEEN, SIZE, "superpoint")
    best = given.keypoint_scores.argsort(descending=True)[:5]
    assert np.array_equal(strongest, given.descriptors[best].half().numpy())


def test_code_that_follows_hloc_reads_the_stores(tmp_path: Path) -> None:
    """The reading code is written from hloc's published layout."""
    with FeatureStore(tmp_path / "f.h5", HEADER) as store:
        store.save("sub/a.jpg", some_features(), ImageRecord(size=SIZE))
    with MatchStore(tmp_path / "m.h5", HEADER) as store:
        store.save("sub/a.jpg", "b.jpg", some_matches(), (50, 40), ("x", "y"))
    names: list[str] = []
    with h5py.File(tmp_path / "f.h5", "r", libver="latest") as file:
        file.visititems(lambda _, item: names.append(item.parent.name.strip("/")) if hasattr(item, "shape") else None)
        assert set(names) == {"sub/a.jpg"}
        group = file["sub/a.jpg"]
        assert group["keypoints"].shape == (50, 2)
        assert group["descriptors"].shape == (16, 50)
        assert group["descriptors"].dtype == np.float16
        assert group["scores"].shape == (50,)
        assert group["image_size"][()].tolist() == [SIZE[1], SIZE[0]]
        scale = SIZE[1] / SEEN[1]
        assert np.allclose(group["keypoints"][:, 0], (some_features().keypoints[:, 0] + 0.5) * scale - 0.5, atol=1e-3)
    with h5py.File(tmp_path / "m.h5", "r", libver="latest") as file:
        pair = file["sub-a.jpg"]["b.jpg"]
        matches = pair["matches0"][()]
        valid = np.flatnonzero(matches != -1)
        assert np.stack([valid, matches[valid]], axis=1).tolist() == some_matches().matches.tolist()
        assert pair["matching_scores0"][()][valid].tolist() == [0.5, 0.25, 1.0]


def test_stores_of_code_that_follows_hloc_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "f.h5", "a", libver="latest") as file:
        for name in ("db/1.jpg", "db/2.jpg"):
            group = file.create_group(name)
            group.create_dataset("keypoints", data=rng.uniform(0, 300, (30, 2)).astype(np.float16))
            group.create_dataset("descriptors", data=rng.normal(size=(16, 30)).astype(np.float16))
            group.create_dataset("scores", data=rng.uniform(size=30).astype(np.float16))
            group.create_dataset("image_size", data=np.array([640, 480]))
            group["keypoints"].attrs["uncertainty"] = 1.0
        file["version"] = 3  # what is no group is passed over
    with h5py.File(tmp_path / "m.h5", "a", libver="latest") as file:
        group = file.create_group("db-1.jpg/db-2.jpg")
        matches = np.full(30, -1, dtype=np.int16)
        matches[[3, 8]] = 5, 1
        group.create_dataset("matches0", data=matches)
        group.create_dataset("matching_scores0", data=np.where(matches >= 0, 0.5, 0).astype(np.float16))
    with FeatureStore(tmp_path / "f.h5") as store:
        assert store.names() == ["db/1.jpg", "db/2.jpg"]
        features = store.load("db/1.jpg")
        assert (len(features), features.image_size, features.descriptors.shape) == (30, (480, 640), (30, 16))
        assert store.record("db/1.jpg").size == (480, 640)
        assert store.digest("db/1.jpg") != store.digest("db/2.jpg")
    with MatchStore(tmp_path / "m.h5") as store:
        assert list(store.pairs()) == [("db-1.jpg", "db-2.jpg")]
        assert list(store.pairs(["db/1.jpg", "db/2.jpg"])) == [("db/1.jpg", "db/2.jpg")]
        assert store.load("db/1.jpg", "db/2.jpg").matches.tolist() == [[3, 5], [8, 1]]
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(StoreError, match="was not written by keyglue"):
        FeatureStore(tmp_path / "f.h5", HEADER)
    assert (tmp_path / "f.h5").read_bytes() == before


def test_matches_come_back_in_both_orders(tmp_path: Path) -> None:
    with MatchStore(tmp_path / "m.h5", HEADER) as store:
        store.save("a.jpg", "b.jpg", some_matches(), (50, 40_000), ("x", "y"))
        store.save("a.jpg", "c.jpg", PairMatches(np.zeros((0, 2), int), np.zeros(0, np.float32)), (0, 9), ("x", "z"))
    with MatchStore(tmp_path / "m.h5") as store:
        assert list(store.pairs()) == [("a.jpg", "b.jpg"), ("a.jpg", "c.jpg")]
        found, swapped, none = store.load("a.jpg", "b.jpg"), store.load("b.jpg", "a.jpg"), store.load("a.jpg", "c.jpg")
        assert store.stamp("a.jpg", "b.jpg") == ("x", "y")
        assert store.stamp("b.jpg", "c.jpg") is None
    assert found.matches.tolist() == some_matches().matches.tolist()
    assert swapped.matches.tolist() == some_matches().matches[:, ::-1].tolist()
    assert found.inliers is not None
    assert found.inliers.tolist() == [True, False, True]
    assert found.geometry == some_matches().geometry
    assert swapped.geometry is None  # a matrix from image 0 to 1 is not one from 1 to 0
    assert (len(none), none.inliers) == (0, None)


def test_names_that_hlocs_layout_makes_one_are_refused() -> None:
    check_names(["a/b.jpg", "a/c.jpg"])
    with pytest.raises(InputError, match=r"a/b\.jpg and a-b\.jpg cannot be told apart"):
        check_names(["a/b.jpg", "a-b.jpg"])


def test_a_store_made_otherwise_is_never_mixed(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "f.h5", {**HEADER, "model": "one name"}) as store:
        store.save("a.jpg", some_features(), ImageRecord(size=SIZE))
    with pytest.raises(StoreError, match="weights 'abc' there and 'xyz' now"):
        FeatureStore(tmp_path / "f.h5", {**HEADER, "weights": "xyz"})
    # The same weights under another name are the same model.
    with FeatureStore(tmp_path / "f.h5", {**HEADER, "model": "another name"}) as store:
        assert store.names() == ["a.jpg"]
    assert sorted(os.listdir(tmp_path)) == ["f.h5"]


def test_what_is_written_twice_is_there_once(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "f.h5", HEADER) as store:
        store.save("a.jpg", some_features(50), ImageRecord(size=SIZE))
        store.save("a.jpg", some_features(20), ImageRecord(size=SIZE))
        store.save("b.jpg", some_features(20), ImageRecord(size=SIZE))
        store.remove("b.jpg")
        store.remove("never there")
    with FeatureStore(tmp_path / "f.h5") as store:
        assert store.names() == ["a.jpg"]
        assert len(store.load("a.jpg")) == 20


@pytest.mark.parametrize("damage", ["cut", "zeros", "text", "empty", "content"])
def test_a_damaged_store_is_refused_with_its_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f.h5"
    with FeatureStore(path, HEADER) as store:
        for index in range(20):
            store.save(f"{index}.jpg", some_features(), ImageRecord(size=SIZE))
    data = bytearray(path.read_bytes())
    place = data.find(some_features().descriptors.half().T.contiguous().numpy().tobytes())
    assert place > 0
    if damage == "content":
        data[place] ^= 1
    damaged = {"cut": data[: len(data) // 2], "zeros": bytes(len(data)), "text": b"not a store", "empty": b""}
    path.write_bytes(damaged.get(damage, data))

    def read() -> None:
        with FeatureStore(path) as store:
            for name in store.names():
                store.load(name)

    with pytest.raises(StoreError, match=r"f\.h5"):
        read()
    if damage != "content":
        with pytest.raises(StoreError, match=r"f\.h5"):
            FeatureStore(path, HEADER)
    assert sorted(os.listdir(tmp_path)) == ["f.h5"]


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no store"):
        FeatureStore(tmp_path / "f.h5")
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist"):
        FeatureStore(tmp_path / "nowhere" / "f.h5", HEADER)
    with FeatureStore(tmp_path / "f.h5", HEADER):
        pass
    with FeatureStore(tmp_path / "f.h5") as store, pytest.raises(StoreError, match="open for reading only"):
        store.save("a.jpg", some_features(), ImageRecord(size=SIZE))


def test_two_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    code = (
        "import sys, pathlib\n"
        "from keyglue.reconstruction.container import Container\n"
        "store = Container(pathlib.Path(sys.argv[1]), {'kind': 'features', 'weights': 'abc'})\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=f"is being written by process {other.pid}"):
            Container(path, HEADER)
        with Container(path):  # reading is always possible
            pass
        other.kill()
        other.wait()
        # A killed process leaves its lock file; the lock itself is gone.
        assert path.with_name("f.h5.lock").exists()
        with Container(path, HEADER):
            pass
        assert sorted(os.listdir(tmp_path)) == ["f.h5"]
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()


def test_an_error_in_the_middle_leaves_what_was_committed(tmp_path: Path) -> None:
    def write() -> None:
        with FeatureStore(tmp_path / "f.h5", HEADER, commit_seconds=0) as store:
            store.save("a.jpg", some_features(), ImageRecord(size=SIZE))
            with store.entry("b.jpg", 10) as group:
                group.create_dataset("keypoints", data=np.zeros((3, 2)))
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    with FeatureStore(tmp_path / "f.h5") as store:
        assert store.names() == ["a.jpg"]
    with FeatureStore(tmp_path / "f.h5", HEADER) as store:
        store.save("b.jpg", some_features(), ImageRecord(size=SIZE))
    with FeatureStore(tmp_path / "f.h5") as store:
        assert len(store.load("b.jpg")) == 50


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_images_that_are_read(tmp_path: Path) -> None:
    """In a process of its own, because what other tests left behind would be returned too."""
    with FeatureStore(tmp_path / "f.h5", HEADER) as store:
        many = torch.rand(512, 256, generator=torch.Generator().manual_seed(0))
        for index in range(400):
            features = Features(keypoints=many[:, :2], descriptors=many, image_size=SIZE)
            store.save(f"{index}.jpg", features, ImageRecord(size=SIZE))
    code = (
        "import sys, pathlib, torch\n"
        "from keyglue.reconstruction.store import FeatureStore\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "with FeatureStore(pathlib.Path(sys.argv[1])) as store:\n"
        "    for index in range(400):\n"
        "        features = store.load(f'{index}.jpg')\n"
        "        similarity = features.descriptors @ features.descriptors.T\n"
        "        similarity.max(dim=1)\n"
        "        start = resident() if index == 20 else start if index else 0\n"
        "    print(resident() - start)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f.h5")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 110e6


def test_what_tells_the_images_apart_lies_together(tmp_path: Path) -> None:
    """Else the names of 100,000 images take as many places on the disk."""
    with FeatureStore(tmp_path / "f.h5", HEADER) as store:
        for index in range(100):
            store.save(f"{index % 3}/{index}.jpg", some_features(400), ImageRecord(size=SIZE))
    with FeatureStore(tmp_path / "f.h5") as store:
        names = store.names()
        assert len(names) == 100
        places = [h5py.h5o.get_info(store.group(name).id).addr for name in names]
    with h5py.File(tmp_path / "f.h5") as file:
        space = file.id.get_create_plist().get_file_space_page_size()
    assert len({place // space for place in places}) < 10
