"""Which pairs, and in which order."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue.base.errors import InputError
from keyglue.reconstruction.pairs import (
    exhaustive_pairs,
    gps_to_metres,
    indices_of,
    nearby_pairs,
    neighbour_pairs,
    read_pairs,
    schedule,
    sequential_pairs,
    unique_pairs,
    write_pairs,
)


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    assert pairs.shape == (len(pairs), 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    found = {(first, second) for first, second in pairs.tolist()}
    assert len(found) == len(pairs)
    return found


def test_exhaustive() -> None:
    assert as_set(exhaustive_pairs(4)) == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    assert len(exhaustive_pairs(1)) == len(exhaustive_pairs(0)) == 0


def test_a_sequence_is_in_the_order_of_its_numbers() -> None:
    names = ["img10.jpg", "img2.jpg", "img9.jpg", "img1.jpg"]
    assert as_set(sequential_pairs(names, 1)) == {(1, 3), (1, 2), (0, 2)}
    assert as_set(sequential_pairs(names, 9)) == as_set(exhaustive_pairs(4))
    loops = np.array([[3], [-1], [-1], [-1]])  # the last comes back to the first
    assert as_set(sequential_pairs(names, 1, loops)) == {(1, 3), (1, 2), (0, 2), (0, 3)}
    assert len(sequential_pairs(["one.jpg"], 3)) == 0
    with pytest.raises(InputError, match="overlap must be at least one"):
        sequential_pairs(names, 0)


def test_neighbours_are_pairs_once() -> None:
    assert as_set(neighbour_pairs(np.array([[1, 2], [0, -1], [1, 0]]))) == {(0, 1), (0, 2), (1, 2)}
    assert len(unique_pairs(np.array([[3, 3]]))) == 0


def test_nearby_cameras_that_look_the_same_way() -> None:
    positions = np.array([[0, 0, 0], [1, 0, 0], [2.5, 0, 0], [100, 0, 0], [np.nan] * 3])
    assert as_set(nearby_pairs(positions, 1)) == {(0, 1), (1, 2), (2, 3)}
    assert as_set(nearby_pairs(positions, 2, max_distance=2)) == {(0, 1), (1, 2)}
    ahead, back = [0, 0, 1], [0, 0, -1]
    directions = np.array([ahead, back, ahead, ahead, [np.nan] * 3], dtype=float)
    assert as_set(nearby_pairs(positions, 1, directions=directions)) == {(0, 2), (2, 3)}


def test_places_on_earth_become_metres() -> None:
    # A second of latitude is 30.9 m, one of longitude at 60 degrees 15.5 m.
    places = [(60.0, 10.0, 0.0), (60 + 1 / 3600, 10.0, 0.0), (60.0, 10 + 1 / 3600, 0.0), (60.0, 10.0, 7.0), None]
    found = gps_to_metres(places)
    distances = np.linalg.norm(found - found[0], axis=1)
    assert distances[1:4] == pytest.approx([30.95, 15.5, 7.0], abs=0.05)
    assert np.isnan(found[4]).all()


def test_pairs_in_a_file(tmp_path: Path) -> None:
    names = ["a.jpg", "with space.jpg", "sub/it's.jpg", "#4.jpg"]
    pairs = exhaustive_pairs(4)
    write_pairs(tmp_path / "pairs.txt", pairs, names, "a comment")
    assert read_pairs(tmp_path / "pairs.txt", names).tolist() == pairs.tolist()
    (tmp_path / "pairs.txt").write_text("sub/it's.jpg a.jpg\n")
    with pytest.raises(InputError, match="line 1: No closing quotation"):
        read_pairs(tmp_path / "pairs.txt", names)
    (tmp_path / "pairs.txt").write_text("# hloc's own\na.jpg '#4.jpg'\n\n'#4.jpg' a.jpg\n")
    assert read_pairs(tmp_path / "pairs.txt", names).tolist() == [[0, 3]]
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg\n")
    with pytest.raises(InputError, match=r"line 1: expected two names of images, got 'a\.jpg b\.jpg'"):
        read_pairs(tmp_path / "pairs.txt", names)
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "none.txt", names)
    assert indices_of([("a.jpg", "#4.jpg"), ("a.jpg", "gone.jpg")], names).tolist() == [[0, 3]]


def loads(pairs: np.ndarray, capacity: int) -> int:
    """Return how often an image is read when the last ``capacity`` used ones are kept."""
    kept: OrderedDict[int, None] = OrderedDict()
    count = 0
    for image in pairs.reshape(-1).tolist():
        count += image not in kept
        kept[image] = None
        kept.move_to_end(image)
        if len(kept) > capacity:
            kept.popitem(last=False)
    return count


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=80).map(
        lambda pairs: unique_pairs(np.array(pairs, dtype=np.int64).reshape(-1, 2))
    ),
    st.integers(2, 20),
)
def test_a_schedule_holds_the_same_pairs(pairs: np.ndarray, capacity: int) -> None:
    found = schedule(pairs, 31, capacity)
    assert sorted(found.tolist()) == sorted(pairs.tolist())


def test_a_schedule_needs_few_loads() -> None:
    rng = np.random.default_rng(0)
    # A walk of 2000 images that were stored in any order, each with its 20 neighbours along the walk.
    place = rng.permutation(2000)
    walk = np.argsort(place)
    neighbours = np.concatenate([np.stack([walk[:-step], walk[step:]], axis=1) for step in range(1, 11)])
    pairs = unique_pairs(neighbours)
    assert loads(schedule(pairs, 2000, 100), 100) < 1.2 * 2000
    assert loads(pairs, 100) > 5 * 2000
    everything = exhaustive_pairs(200)
    assert loads(schedule(everything, 200, 50), 50) <= sum(range(200, 0, -48))
    assert loads(everything, 50) > 10_000
