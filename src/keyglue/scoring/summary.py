"""From the measurements of all pairs to the numbers of a table row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keyglue.multiview.metrics import auc
from keyglue.scoring.protocols import AUC_THRESHOLDS, MATCH_THRESHOLDS, REPEATABILITY_THRESHOLDS

Record = dict[str, Any]


def summarise_method(records: Sequence[Record], kind: str) -> Record:
    """Sum up what one method did on many pairs.

    Args:
        records: One a pair, as ``measure_matches`` and ``measure_geometry`` return it.
        kind: "homography" or "pose".

    Returns:
        "pairs"; means over the pairs of "keypoints" an image, "matches", "precision@..", "correct@..";
        "fine_share", the matches right within 1 px as a share of those right within 3 px, all pairs together;
        "auc_NAME" for each estimator, one area a threshold; for adaptive models the means of "stop_layer" and
        "pruned", the share of keypoints dropped early; "kept", the share of the reference method's correct matches
        that this one has too, all pairs together; "ms_match". A number that nothing was measured for is left out.
    """
    summary: Record = {"pairs": len(records), "keypoints": float(np.mean([r["keypoints"] for r in records]))}
    counts = [f"{what}@{limit}px" for what in ("precision", "correct") for limit in MATCH_THRESHOLDS]
    for name in ("matches", *counts, "stop_layer", "pruned", "ms_match"):
        _put(summary, name, _mean(r.get(name) for r in records))
    _put(summary, "fine_share", _ratio(records, "correct@1px", "correct@3px"))
    _put(summary, "kept", _ratio(records, "kept", "kept_of"))
    for name in sorted({name for record in records for name in record if name.startswith("error_")}):
        areas = auc([record[name] for record in records], AUC_THRESHOLDS[kind])
        summary[name.replace("error_", "auc_")] = areas
    return summary


def summarise_detector(records: Sequence[Record]) -> Record:
    """Sum up what one detector did on many pairs.

    Args:
        records: One a pair, as ``measure_keypoints`` returns it.

    Returns:
        Means over the pairs of "keypoints" an image, "visible" keypoints an image, "repeatability@..",
        "localisation@.." (over the pairs that have one), "ms_image".
    """
    summary: Record = {"pairs": len(records)}
    for name in ("keypoints", "visible"):
        _put(summary, name, _mean(np.mean(r[name]) for r in records if name in r))
    limits = [f"{what}@{limit}px" for what in ("repeatability", "localisation") for limit in REPEATABILITY_THRESHOLDS]
    for name in (*limits, "ms_image"):
        _put(summary, name, _mean(r.get(name) for r in records))
    return summary


def by_group(
    groups: Sequence[str], records: Sequence[Record], summarise: Callable[[Sequence[Record]], Record]
) -> dict[str, Record]:
    """Sum up each named group of pairs by itself; nothing where there is only one.

    Args:
        groups: Group of each pair; empty for none.
        records: Record of each pair.
        summarise: What sums up some of them.
    """
    names = sorted({group for group in groups if group})
    if len(names) < 2:
        return {}
    return {name: summarise([r for group, r in zip(groups, records, strict=True) if group == name]) for name in names}


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _ratio(records: Sequence[Record], part: str, whole: str) -> float | None:
    total = sum(record.get(whole, 0) for record in records)
    return sum(record.get(part, 0) for record in records) / total if total else None


def _put(summary: Record, name: str, value: float | None) -> None:
    if value is not None:
        summary[name] = value
