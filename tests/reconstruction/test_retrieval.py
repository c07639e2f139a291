"""Images that show the same place are found among many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.choose import PairOptions, choose_pairs, similar_images
from keyglue.reconstruction.extract import extract_images
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.retrieval import RetrievalOptions, best_connected, image_vectors, nearest_images
from keyglue.reconstruction.store import FeatureStore

PLACES, VIEWS = 12, 5


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of five views each of twelve places: a view has half of its place's points, and some of its own."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("places") / "f.h5"
    with FeatureStore(path, {"kind": "features"}) as store:
        for place in range(PLACES):
            known = rng.normal(size=(120, 32))
            for view in range(VIEWS):
                seen = known[rng.permutation(120)[:60]]
                rows = np.concatenate([seen + 0.1 * rng.normal(size=seen.shape), rng.normal(size=(40, 32))])
                unit = torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)
                features = Features(
                    keypoints=torch.rand(100, 2) * 90,
                    descriptors=unit,
                    keypoint_scores=torch.rand(100),
                    image_size=(100, 100),
                )
                # Sorted by view, so that neighbours in the list are of different places.
                store.save(f"{view}/{place:02d}.jpg", features, ImageRecord(size=(100, 100), digest=f"{view}{place}"))
    return path


def share_of_right_ones(names: list[str], neighbours: np.ndarray) -> float:
    place = [name[-6:] for name in names]
    right = [place[other] == place[image] for image, row in enumerate(neighbours.tolist()) for other in row]
    return float(np.mean(right))


def test_views_of_the_same_place_are_nearest(places: Path) -> None:
    with FeatureStore(places) as store:
        names = store.names()
        options = RetrievalOptions(words=16, dimensions=48)
        vectors = image_vectors(store, names, options)
        again = image_vectors(store, names, options)
        assert np.array_equal(vectors, again)
        assert vectors.shape == (60, 48)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        coarse = nearest_images(vectors, VIEWS - 1)
        assert share_of_right_ones(names, coarse) > 0.8
        assert all(image not in row for image, row in enumerate(coarse.tolist()))
        seen: list[str] = []
        fine = similar_images(store, names, VIEWS - 1, progress=lambda *what: seen.append(what[0]))
        assert share_of_right_ones(names, fine) > 0.97
        assert set(seen) == {"describe images", "compare images"}


def test_blocks_give_the_same_neighbours() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T - 10 * np.eye(50)
    expected = np.argsort(-similarity, axis=1)[:, :6]
    assert np.array_equal(nearest_images(vectors, 6), expected)
    assert np.array_equal(nearest_images(vectors, 6, block=7), expected)
    assert nearest_images(vectors[:3], 6).shape == (3, 2)
    assert nearest_images(vectors[:1], 6).shape == (1, 0)
    with pytest.raises(InputError, match="at least one neighbour"):
        nearest_images(vectors, 0)


def test_what_resembles_the_most_alike_comes_before_what_resembles_one_image_alone() -> None:
    # 0, 1 and 2 are of one place. 0 and 2 were not found to be alike, 3 is a little like 0 alone.
    pairs = np.array([[0, 1], [1, 2], [0, 3]])
    found = best_connected(pairs, np.array([9, 8, 1], dtype=np.float32), 5, 4)
    assert found.shape == (5, 4)
    assert found[0].tolist() == [1, 2, 3, -1]
    assert found[2].tolist() == [1, 0, -1, -1]
    assert found[4].tolist() == [-1] * 4
    # More neighbours than speak for others follow in the order of their weights.
    star = np.stack([np.zeros(15, dtype=np.int64), np.arange(1, 16)], axis=1)
    assert best_connected(star, np.arange(30, 15, -1).astype(np.float32), 16, 15)[0].tolist() == list(range(1, 16))
    assert best_connected(np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.float32), 1, 3).shape == (1, 0)


def test_images_without_keypoints(places: Path, tmp_path: Path) -> None:
    nothing = Features(keypoints=torch.zeros(0, 2), descriptors=torch.zeros(0, 32), image_size=(100, 100))
    with FeatureStore(tmp_path / "f.h5", {}) as store, FeatureStore(places) as source:
        for name in source.names()[:4]:
            store.save(name, source.load(name), source.record(name))
        store.save("empty.jpg", nothing, ImageRecord(size=(100, 100)))
        names = store.names()
        vectors = image_vectors(store, names)
        assert not vectors[names.index("empty.jpg")].any()
        assert similar_images(store, names, 2).shape == (5, 2)
        with pytest.raises(InputError, match="no image has keypoints"):
            image_vectors(store, ["empty.jpg"])
        with pytest.raises(InputError, match="at least one image"):
            image_vectors(store, [])


def test_photographs_of_one_thing_find_each_other(
    photos: Path, names: list[str], matcher: Matcher, tmp_path: Path
) -> None:
    extract_images(photos, names, tmp_path / "f.h5", matcher)
    with FeatureStore(tmp_path / "f.h5") as store:
        neighbours = similar_images(store, names, 1)
    assert names[neighbours[names.index("b1.png"), 0]] == "b2.png"
    assert names[neighbours[names.index("a1.png"), 0]] in ("a2.png", "sub/a3.png")


def test_choices_and_their_file(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FeatureStore(places) as store:
        names = store.names()
    pairs = choose_pairs(places, names, PairOptions(), tmp_path / "pairs.txt")
    assert len(pairs) == 60 * 59 // 2  # few images: all of them
    options = PairOptions(choice="retrieval", neighbours=4)
    found = choose_pairs(places, names, options, tmp_path / "pairs.txt")
    assert 60 * 4 // 2 <= len(found) <= 60 * 4
    monkeypatch.setattr("keyglue.reconstruction.choose.image_vectors", lambda *_, **__: pytest.fail("it was known"))
    assert choose_pairs(places, names, options, tmp_path / "pairs.txt").tolist() == found.tolist()
    monkeypatch.undo()
    fewer = choose_pairs(places, names[:30], options, tmp_path / "pairs.txt")
    assert fewer.max() < 30
    sequence = choose_pairs(places, names, PairOptions(choice="sequential", overlap=2), tmp_path / "pairs.txt")
    assert {(0, 1), (0, 2), (58, 59)} <= {tuple(pair) for pair in sequence.tolist()}
    loops = [(first, second) for first, second in sequence.tolist() if second - first > 2]
    assert len(loops) > 100  # beyond the images that follow
    assert np.mean([names[first][-6:] == names[second][-6:] for first, second in loops]) > 0.6
    with pytest.raises(InputError, match="fewer than two images have a place"):
        choose_pairs(places, names, PairOptions(choice="gps"), tmp_path / "pairs.txt")
    with pytest.raises(InputError, match="pairs must be one of auto, exhaustive"):
        PairOptions(choice="random")
    with pytest.raises(InputError, match="at least one image"):
        PairOptions(neighbours=0)


def test_pairs_by_gps(tmp_path: Path, places: Path) -> None:
    spots = {"a.jpg": (50.0, 8.0, 0.0), "b.jpg": (50.0001, 8.0, 0.0), "c.jpg": (51.0, 8.0, 0.0), "d.jpg": None}
    with FeatureStore(tmp_path / "f.h5", {}) as store, FeatureStore(places) as source:
        features = source.load(source.names()[0])
        for name, gps in spots.items():
            store.save(name, features, ImageRecord(size=(100, 100), gps=gps))
    options = PairOptions(choice="gps", neighbours=3, max_distance=100)
    assert choose_pairs(tmp_path / "f.h5", sorted(spots), options, tmp_path / "p.txt").tolist() == [[0, 1]]
