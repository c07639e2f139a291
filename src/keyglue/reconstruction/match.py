"""Pairs of described images to a store of matches: each image is read once while its pairs run, verified as it goes."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import Self

from keyglue.base.errors import InputError, StoreError
from keyglue.base.types import Features, Matches
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.executor import Executor, SerialExecutor
from keyglue.reconstruction.extract import Progress, StageReport, weights_digest
from keyglue.reconstruction.overlap import overlap_score
from keyglue.reconstruction.pairs import Pairs, schedule
from keyglue.reconstruction.record import ImageRecord
from keyglue.reconstruction.store import FeatureStore, MatchStore, PairMatches, check_names, upright_keypoints
from keyglue.reconstruction.verify import VerifyOptions, pixel_scale, verify_pair

NamePair = tuple[str, str]
# Pairs that go to a process at once; long enough that neighbours in the schedule share their images.
_CHUNK = 64
_SAMPLE = 64


@dataclasses.dataclass(frozen=True)
class Matched:
    """A pair that has been matched, or the reason why not."""

    names: NamePair
    keypoints: tuple[int, int] = (0, 0)
    found: PairMatches | None = None
    error: str = ""


@dataclasses.dataclass
class MatchPairs:
    """The work of a stage: chunks of pairs in, verified matches out.

    Attributes:
        store: Features of the images.
        matcher: Matches them.
        verify: Settings of the geometric verification, None for none.
        min_overlap: Pairs with a smaller ``overlap_score`` are given no matches without asking the matcher.
        memory: Bytes of features that are kept.
        batch: Number of pairs that the matcher gets at once.
    """

    store: Path
    matcher: Matcher
    verify: VerifyOptions | None
    min_overlap: int
    memory: int
    batch: int

    def on(self, device: str) -> Self:
        """Return the same work on another device."""
        self.matcher.model.to(device)
        return self

    def __call__(self, items: Iterable[Sequence[NamePair]]) -> Iterator[list[Matched]]:
        """Yield the matches of each chunk; verification runs beside the matcher."""
        waiting: deque[list[Matched | Future[Matched]]] = deque()
        with FeatureStore(self.store) as features, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            kept = _Kept(features, self.memory, self.matcher.model.device)
            for chunk in items:
                waiting.append(list(self._match(chunk, kept, pool)))
                if len(waiting) > 1:
                    yield _results(waiting.popleft())
            while waiting:
                yield _results(waiting.popleft())

    def _match(
        self, chunk: Sequence[NamePair], kept: _Kept, pool: ThreadPoolExecutor
    ) -> Iterator[Matched | Future[Matched]]:
        ready: list[tuple[NamePair, Features, Features]] = []
        for names in chunk:
            try:
                pair = kept.take(names[0]), kept.take(names[1])
            except (InputError, StoreError) as error:
                yield Matched(names, error=str(error))
                continue
            if self.min_overlap > 0 and overlap_score(*pair) < self.min_overlap:
                yield Matched(names, (len(pair[0]), len(pair[1])), _NOTHING)
            else:
                ready.append((names, *pair))
        # Pairs of a like size together: the matcher runs those at once that have equally many keypoints.
        ready.sort(key=lambda entry: (len(entry[1]), len(entry[2])))
        for start in range(0, len(ready), self.batch):
            part = ready[start : start + self.batch]
            with torch.no_grad():
                answers = self.matcher.model.match_pairs([entry[1:] for entry in part])
            for entry, found in zip(part, answers, strict=True):
                if self.verify is None:
                    yield Matched(entry[0], (len(entry[1]), len(entry[2])), _pair_matches(found))
                else:
                    records = kept.record(entry[0][0]), kept.record(entry[0][1])
                    yield pool.submit(_verified, *entry, _pair_matches(found), records, self.verify)


class _Kept:
    """Features of the images used last, up to a number of bytes, on the device that matches them."""

    def __init__(self, store: FeatureStore, memory: int, device: torch.device) -> None:
        self._store = store
        self._device = device
        self._memory = memory
        self._held = 0
        self._features: OrderedDict[str, Features] = OrderedDict()
        self._records: dict[str, ImageRecord] = {}

    def take(self, name: str) -> Features:
        found = self._features.get(name)
        if found is None:
            found = self._features[name] = self._store.load(name).to(self._device)
            self._held += feature_bytes(found)
        self._features.move_to_end(name)
        # Two images at the least, those of the pair at hand.
        while self._held > self._memory and len(self._features) > 2:
            oldest, dropped = self._features.popitem(last=False)
            self._held -= feature_bytes(dropped)
            self._records.pop(oldest, None)
        return found

    def record(self, name: str) -> ImageRecord:
        if name not in self._records:
            self._records[name] = self._store.record(name)
        return self._records[name]


def match_images(
    pairs: Pairs,
    names: Sequence[str],
    features: Path,
    store: Path,
    matcher: Matcher,
    *,
    verify: VerifyOptions | None = None,
    min_overlap: int = 0,
    memory: int = 1 << 30,
    batch: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> StageReport:
    """Match pairs of described images into a store; pairs that are there already are left alone.

    A pair is matched again when one of its images has been described again since.

    Args:
        pairs: (P, 2) indices into ``names``.
        names: Names of the images.
        features: Store of their features.
        store: HDF5 file to write or to continue.
        matcher: Matches the pairs.
        verify: Settings of the geometric verification, None for none.
        min_overlap: Pairs with a smaller ``overlap_score`` get no matches.
        memory: Bytes of features that are kept in memory.
        batch: Pairs that the matcher gets at once; 1 on a CPU and 16 elsewhere unless told.
        executor: Where to compute; in this process unless told.
        progress: Called with "match", the number of pairs done and that of all.

    Returns:
        Numbers of pairs; one that fails is left out and named.

    Raises:
        StoreError: A store is damaged, in use, or was made by another model or with other settings.
        InputError: A name is not in the store of features.
    """
    start = time.perf_counter()
    failed: dict[str, str] = {}
    check_names(list(names))
    with FeatureStore(features) as described, MatchStore(store, match_header(matcher, verify, min_overlap)) as matches:
        used: list[str] = [names[int(index)] for index in np.unique(pairs)]
        digests = {name: described.digest(name) for name in used}
        wanted = pairs[[_is_missing(matches, names, pair, digests) for pair in pairs.tolist()]] if len(pairs) else pairs
        kept = len(pairs) - len(wanted)
        capacity = max(2, memory // max(1, _typical_bytes(described, used)))
        chunks = _chunks(schedule(wanted, len(names), capacity), names)
        size = batch or (1 if matcher.model.device.type == "cpu" else 16)
        work = MatchPairs(features, matcher, verify, min_overlap, memory, size)
        count = kept
        if progress is not None:
            progress("match", kept, len(pairs))
        for results in (executor or SerialExecutor()).run(work, chunks):
            for pair in results:
                if pair.found is None:
                    failed[" ".join(pair.names)] = pair.error
                else:
                    stamps = digests[pair.names[0]], digests[pair.names[1]]
                    matches.save(*pair.names, pair.found, pair.keypoints, stamps)
                count += 1
            if progress is not None:
                progress("match", count, len(pairs))
    return StageReport(len(wanted) - len(failed), kept, failed, time.perf_counter() - start)


def match_header(matcher: Matcher, verify: VerifyOptions | None, min_overlap: int) -> dict[str, Any]:
    """Return what a store of matches says of how they were made."""
    model = matcher.model
    leave = ("keypoint_detector_config", "transformers_version", "dtype", "architectures", "name_or_path")
    settings = {key: value for key, value in model.config.to_dict().items() if key not in leave}
    return {
        "kind": "matches",
        "model": str(model.name_or_path),
        "weights": weights_digest(model, but="keypoint_detector."),
        "matcher": settings,
        "dtype": str(model.dtype),
        "verification": None if verify is None else dataclasses.asdict(verify),
        "min_overlap": min_overlap,
    }


def feature_bytes(features: Features) -> int:
    """Return the memory that an image's features take."""
    return len(features) * (4 * features.descriptors.shape[1] + 24)


_NOTHING = PairMatches(
    np.zeros((0, 2), dtype=np.int64),
    np.zeros(0, dtype=np.float32),
    np.zeros(0, dtype=bool),
    {"config": "UNDEFINED", "skipped": "too little overlap"},
)


def _pair_matches(found: Matches) -> PairMatches:
    first = (found.matches0 >= 0).nonzero().squeeze(1)
    matches = np.stack([first.cpu().numpy(), found.matches0[first].cpu().numpy()], axis=1)
    return PairMatches(matches, found.matching_scores0[first].float().cpu().numpy())


def _verified(
    names: NamePair,
    features0: Features,
    features1: Features,
    found: PairMatches,
    records: tuple[ImageRecord, ImageRecord],
    options: VerifyOptions,
) -> Matched:
    keypoints0 = upright_keypoints(features0.keypoints, features0.image_size, records[0]).cpu().numpy()
    keypoints1 = upright_keypoints(features1.keypoints, features1.image_size, records[1]).cpu().numpy()
    scale = max(pixel_scale(features0), pixel_scale(features1))
    verified = verify_pair(keypoints0, keypoints1, found, *records, options, scale)
    return Matched(names, (len(features0), len(features1)), verified)


def _results(chunk: Iterable[Matched | Future[Matched]]) -> list[Matched]:
    return [entry if isinstance(entry, Matched) else entry.result() for entry in chunk]


def _chunks(pairs: Pairs, names: Sequence[str]) -> Iterator[list[NamePair]]:
    for start in range(0, len(pairs), _CHUNK):
        chunk: list[tuple[int, int]] = pairs[start : start + _CHUNK].tolist()
        yield [(names[first], names[second]) for first, second in chunk]


def _is_missing(matches: MatchStore, names: Sequence[str], pair: list[int], digests: dict[str, str]) -> bool:
    name0, name1 = names[pair[0]], names[pair[1]]
    return matches.stamp(name0, name1) != (digests[name0], digests[name1])


def _typical_bytes(features: FeatureStore, names: Sequence[str]) -> int:
    """Return the memory that an image's features take on average, judged by some of them."""
    some = names[:: max(1, len(names) // _SAMPLE)]
    return sum(features.memory(name) for name in some) // max(1, len(some))
