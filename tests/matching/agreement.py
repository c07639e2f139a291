"""Comparing the answers of the fast path with those of the reference path."""

from __future__ import annotations

import torch

from keyglue.base.types import Features, Matches
from keyglue.matching.lightglue.fast import ReferencePath
from keyglue.matching.lightglue.lightglue import LightGlueMatcher

FIELDS = ("matches0", "matches1", "matching_scores0", "matching_scores1", "prune0", "prune1")
# Matches may differ where the reference path's own decision hangs on less than this.
MARGIN = 1e-5


@torch.no_grad()
def reference(model: LightGlueMatcher, pairs: list[tuple[Features, Features]]) -> list[Matches]:
    """Return the reference path's answers."""
    return model._run(pairs, ReferencePath(model))


def assert_agree(found: Matches, expected: Matches, filter_threshold: float, tolerance: float = 1e-4) -> None:
    """Check that matches are the same except where the score is at the threshold, and scores nearly so."""
    for side in (0, 1):
        scores = getattr(expected, f"matching_scores{side}")
        torch.testing.assert_close(getattr(found, f"matching_scores{side}"), scores, atol=tolerance, rtol=0)
        clear = (scores - filter_threshold).abs() > MARGIN
        assert torch.equal(getattr(found, f"matches{side}")[clear], getattr(expected, f"matches{side}")[clear])


def share_of_same_matches(found: Matches, expected: Matches) -> float:
    """Return the matches that both have, as a share of those that either has."""
    own = {tuple(pair) for pair in found.indices.tolist()}
    other = {tuple(pair) for pair in expected.indices.tolist()}
    return len(own & other) / max(len(own | other), 1)
