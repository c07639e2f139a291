"""Scoring: a model and a set of image pairs with ground truth in, comparable numbers out.

docs/scoring.md states every protocol.
"""

from keyglue.scoring.report import ScoreReport
from keyglue.scoring.run import score

__all__ = ["ScoreReport", "score"]
