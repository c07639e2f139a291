from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue.base.errors import InputError
from keyglue.multiview.metrics import auc, precision


def test_auc_of_cases_computed_by_hand():
    # One error of 2 below 10: a straight line from (0, 0) to (2, 1), then level: (2/2 + 8) / 10.
    assert auc([2.0], [10]) == pytest.approx([0.9])
    # (0, 0) to (1, 1/2) to (3, 1): 1/4 + 2 * 3/4; then 2 at level 1, over 5. At 2: 1/4 + 1 * 1/2, over 2.
    assert auc([3.0, 1.0], [5, 2]) == pytest.approx([3.75 / 5, 0.75 / 2])
    # Two of four fail: (0, 0) to (1, 1/4) to (2, 1/2), level to 4.
    assert auc([1, np.inf, 2, np.inf], [4]) == pytest.approx([(1 / 8 + 3 / 8 + 1) / 4])
    assert auc([0, 0], [1, 5]) == [1, 1]
    assert auc([np.inf], [5]) == [0]
    # An error at the threshold is not below it.
    assert auc([5.0], [5]) == [0]


@settings(deadline=None)
@given(st.lists(st.floats(0, 30), min_size=1, max_size=50), st.floats(0.5, 25))
def test_auc_agrees_with_sampling_the_curve(errors, threshold):
    below = sorted(e for e in errors if e < threshold)
    x = np.concatenate([[0.0], below, [threshold]])
    y = np.concatenate([[0.0], np.arange(1, len(below) + 1) / len(errors), [len(below) / len(errors)]])
    # Errors of equal size make steps; moving them apart by next to nothing makes the curve a function.
    x = x + np.arange(len(x)) * 1e-13
    grid = np.linspace(0, threshold, 20001)
    sampled = np.interp(grid, x, y).mean()
    assert auc(errors, [threshold])[0] == pytest.approx(sampled, abs=1e-3)


def test_precision_counts_errors_below():
    assert precision([0.5, 1.0, 2.0, np.inf], [1, 1.5, 3]) == [0.25, 0.5, 0.75]
    assert precision([], [1, 2]) == [0, 0]


def test_impossible_errors_are_refused():
    for wrong in ([-1.0], [np.nan], [[1.0]]):
        with pytest.raises(InputError):
            auc(wrong, [1])
    with pytest.raises(InputError, match="at least one"):
        auc([], [1])
    with pytest.raises(InputError, match="thresholds"):
        precision([1.0], [0])
