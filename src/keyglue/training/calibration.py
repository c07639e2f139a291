"""The probability that two images show the same thing: fitted and tested on photographs that training leaves out.

Pairs that do are views of one photograph or of one made-up room; pairs that do not are views of two. A logistic
regression on what the matcher finds (``keyglue.matching.probability``) is fitted on one half of the pairs and tested
on the other.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from keyglue.base.errors import InputError
from keyglue.base.types import Features
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.probability import evidence
from keyglue.training.data import load_data
from keyglue.training.homographies import ViewSettings
from keyglue.training.photometric import PhotometricSettings
from keyglue.training.photos import Photos
from keyglue.training.rooms import RoomSettings
from keyglue.training.sources import PhotoSource, RoomSource, describe
from keyglue.training.task import generator_for

_SEED = 7
_FEWEST, _MOST = 96, 1024
_SIZE = (480, 640)
_ROOMS = 0.4
_RIDGE = 1e-5
BINS = 10
FEW = 5


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was fitted, and how it did on the other half of the pairs.

    Attributes:
        weights: Intercept and weights for ``LightGlueConfig.match_probability``.
        reliability: For each tenth of probabilities that occurs: number of pairs, mean probability, share of the pairs
            that do show the same thing.
        brier: Mean squared difference between probability and truth; 0.25 says nothing, 0 is perfect.
        accuracy: Share of the pairs told right at 0.5.
        few_matches: Share of the unrelated pairs with fewer than 5 matches at the model's filter threshold.
    """

    weights: tuple[float, ...]
    reliability: list[tuple[int, float, float]]
    brier: float
    accuracy: float
    few_matches: float


def calibrate(
    model: LightGlueForKeypointMatching,
    data: Sequence[str | os.PathLike[str]],
    *,
    pairs: int = 400,
    seed: int = _SEED,
) -> Calibration:
    """Fit and test the probability on photographs that training leaves out.

    Args:
        model: Detector and matcher; nothing of it is changed.
        data: Folders of images and tar files, as for training; only what is held out of them is used.
        pairs: Number of pairs (an odd one is left out), half of them unrelated; half is for the fit, half for the
            test.
        seed: Of all randomness.

    Raises:
        InputError: There are fewer than two held-out photographs, or too few pairs.
    """
    if pairs < 8:
        raise InputError(f"calibration needs at least 8 pairs, got {pairs}.")
    held_out = load_data(data, model.device).held_out
    if len(held_out) < 2:
        raise InputError(
            "calibration needs two photographs that training leaves out, about 30 in all. Give more photographs."
        )
    values, truth, matches = _pairs(model, held_out, pairs, seed)
    # Every other pair of each kind, as the two kinds alternate.
    fitting = torch.arange(len(truth)) // 2 % 2 == 0
    weights = fit_logistic(values[fitting], truth[fitting])
    probability = torch.sigmoid(_design(values[~fitting]) @ weights)
    expected = truth[~fitting]
    return Calibration(
        weights=tuple(round(weight, 5) for weight in weights.tolist()),
        reliability=reliability_table(probability, expected),
        brier=float((probability - expected).square().mean()),
        accuracy=float(((probability > 0.5) == (expected > 0.5)).double().mean()),
        few_matches=float((matches[truth < 0.5] < FEW).double().mean()),
    )


def fit_logistic(values: Tensor, truth: Tensor) -> Tensor:
    """Return intercept and weights (1 + F,) of a logistic regression by Newton's method, slightly regularised.

    Args:
        values: (P, F) float64.
        truth: (P,) 0 or 1, float64.
    """
    design = _design(values)
    weights = torch.zeros(design.shape[1], dtype=torch.float64)
    ridge = _RIDGE * torch.eye(len(weights), dtype=torch.float64)
    for _ in range(50):
        probability = torch.sigmoid(design @ weights)
        slope = design.T @ (probability - truth) / len(truth) + ridge @ weights
        curve = (design.T * (probability * (1 - probability))) @ design / len(truth) + ridge
        step = torch.linalg.solve(curve, slope)
        # Shortened, so that it cannot run away where the two kinds are far apart.
        weights = weights - step / max(1.0, float(step.norm()))
        if float(step.norm()) < 1e-10:
            break
    return weights


def reliability_table(probability: Tensor, truth: Tensor) -> list[tuple[int, float, float]]:
    """Return for each tenth of probabilities that occurs: pairs, mean probability, share of truth."""
    bins = (probability * BINS).long().clamp(0, BINS - 1)
    rows: list[tuple[int, float, float]] = []
    for number in range(BINS):
        inside = bins == number
        if inside.any():
            rows.append((int(inside.sum()), float(probability[inside].mean()), float(truth[inside].mean())))
    return rows


def _design(values: Tensor) -> Tensor:
    return torch.cat([torch.ones(len(values), 1, dtype=values.dtype), values], dim=1)


def _pairs(model: LightGlueForKeypointMatching, photos: Photos, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Match ``count`` pairs, related and unrelated ones in turn.

    Returns:
        Evidence (count, 2), whether they show the same thing (count,), and numbers of matches (count,).
    """
    # Neighbours come from different photographs: the even ones from one half, the odd ones from the other.
    halves = [photos.select(range(start, len(photos), 2)) for start in (0, 1)]
    groups = [_describe(model, halves[number % 2], generator_for(seed, number)) for number in range(count // 2 + 1)]
    values: list[tuple[float, float]] = []
    matches: list[int] = []
    for number, (first, second) in enumerate(groups[1:]):
        with torch.no_grad():
            # groups[number] is the group before this one.
            for found in model.match_pairs([(first, second), (first, groups[number][1])]):
                values.append(evidence(found))
                matches.append(len(found))
    truth = (torch.arange(len(values)) % 2 == 0).double()
    return torch.tensor(values, dtype=torch.float64), truth, torch.tensor(matches)


def _describe(
    model: LightGlueForKeypointMatching, photos: Photos, generator: torch.Generator
) -> tuple[Features, Features]:
    """Describe two views of one photograph or room, both with the same number of keypoints or fewer."""
    # Large enough for the most keypoints: how many of them match by chance depends on their number.
    views = ViewSettings(size=_SIZE)
    in_room = float(torch.rand((), generator=generator)) < _ROOMS
    source = RoomSource(photos, views.size, RoomSettings()) if in_room else PhotoSource(photos, views)
    detector = model.keypoint_detector
    config = detector.config
    detector.config = config.replace(max_keypoints=_MOST)
    try:
        group = describe(source.draw(2, generator), detector, PhotometricSettings(), generator)
    finally:
        detector.config = config
    kept = int(_FEWEST * (_MOST / _FEWEST) ** float(torch.rand((), generator=generator)))
    first, second = group.features
    return _best(first, kept), _best(second, kept)


def _best(features: Features, count: int) -> Features:
    """Keep the best ``count`` keypoints, which come first."""
    return features.select(torch.arange(min(count, len(features)), device=features.device))


def describe_calibration(calibration: Calibration) -> list[tuple[str, str]]:
    """Return what was found as rows of a name and a text."""
    rows = [
        ("told right", f"{calibration.accuracy:.1%} of the tested pairs"),
        ("Brier score", f"{calibration.brier:.3f} (0 is perfect, 0.25 says nothing)"),
        ("unrelated pairs", f"{calibration.few_matches:.1%} have fewer than {FEW} matches"),
    ]
    for pairs, mean, share in calibration.reliability:
        low = math.floor(min(mean, 0.999) * BINS) / BINS
        rows.append((f"{low:.0%} to {low + 1 / BINS:.0%}", f"{pairs} pairs, mean {mean:.1%}, true {share:.1%}"))
    return rows
