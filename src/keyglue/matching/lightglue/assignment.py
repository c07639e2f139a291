"""From descriptors to matches: similarity, matchability, the assignment matrix (section 3.1, equations 5 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keyglue.matching.lightglue.configuration import LightGlueConfig


class MatchAssignment(nn.Module):
    """Log assignment matrix of a pair of images at the end of a layer."""

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__()
        self.scale = config.descriptor_dim**-0.25
        self.final_projection = nn.Linear(config.descriptor_dim, config.descriptor_dim)
        self.matchability = nn.Linear(config.descriptor_dim, 1)

    def matchability_of(self, x: Tensor) -> Tensor:
        """Return the probability (T,) that each token has a match."""
        return self.matchability(x).squeeze(-1).float().sigmoid()

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Return the log assignment (..., M + 1, N + 1), float32; the last row and column mean "no match".

        Args:
            x0: (..., M, D) tokens of image 0; leading dimensions are pairs of as many keypoints each.
            x1: (..., N, D) tokens of image 1.
        """
        return log_assignment(*self.similarity(x0, x1))

    def similarity(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return S (..., M, N) and the matchability logits z0 (..., M) and z1 (..., N), float32."""
        (y0, z0), (y1, z1) = self.project(x0), self.project(x1)
        return (y0 @ y1.mT).float(), z0, z1

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what similarities are products of, (..., M, D), and the matchability logits (..., M), float32."""
        return self.final_projection(x) * self.scale, self.matchability(x).squeeze(-1).float()


def log_assignment(similarity: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
    """Return the log assignment (..., M + 1, N + 1); the last row and column mean "no match".

    log P_ij = log softmax_j(S)_ij + log softmax_i(S)_ij + log sigmoid(z0_i) + log sigmoid(z1_j)

    Args:
        similarity: S (..., M, N).
        z0: (..., M) matchability logits of image 0.
        z1: (..., N) those of image 1.
    """
    scores = similarity.log_softmax(dim=-1) + similarity.log_softmax(dim=-2)
    scores = scores + F.logsigmoid(z0)[..., :, None] + F.logsigmoid(z1)[..., None, :]
    scores = torch.cat([scores, F.logsigmoid(-z0)[..., :, None]], dim=-1)
    bottom = torch.cat([F.logsigmoid(-z1), z1.new_zeros(*z1.shape[:-1], 1)], dim=-1)
    return torch.cat([scores, bottom[..., None, :]], dim=-2)


def mutual_matches(log_assignment: Tensor, filter_threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the matches of one pair: mutual best entries whose probability exceeds the threshold.

    Args:
        log_assignment: (M + 1, N + 1), with M, N >= 1.
        filter_threshold: Probability that a match must exceed.

    Returns:
        matches0 (M,), matches1 (N,): index in the other image or -1; scores0 (M,), scores1 (N,): probability of the
        mutual best entry, also below the threshold, 0 where it is not mutual.
    """
    inner = log_assignment[:-1, :-1]
    best0, index0 = inner.max(dim=1)
    return mutual_best(best0, index0, inner.argmax(dim=0), filter_threshold)


def mutual_best(
    best0: Tensor, index0: Tensor, index1: Tensor, filter_threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the matches as ``mutual_matches`` does.

    Args:
        best0: (M,) best log probability of each row.
        index0: (M,) its column.
        index1: (N,) row of each column's best entry.
        filter_threshold: Probability that a match must exceed.
    """
    mutual0 = index1[index0] == torch.arange(len(index0), device=index0.device)
    mutual1 = index0[index1] == torch.arange(len(index1), device=index1.device)
    scores0 = torch.where(mutual0, best0.exp(), 0.0)
    scores1 = torch.where(mutual1, scores0[index1], 0.0)
    matches0 = torch.where(scores0 > filter_threshold, index0, -1)
    matches1 = torch.where(scores1 > filter_threshold, index1, -1)
    return matches0, matches1, scores0, scores1
