"""SuperPoint and LightGlue as plain graphs of fixed size, to be exported to other runtimes."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keyglue import LightGlueForKeypointMatching, SuperPointForKeypointDetection
from keyglue.matching.lightglue.attention import Attention
from keyglue.matching.lightglue.layer import MLP


class DenseSuperPoint(nn.Module):
    """SuperPoint's dense part: an image (1, 1, h, w) to scores (1, h, w) and descriptors (1, D, h/8, w/8)."""

    def __init__(self, model: SuperPointForKeypointDetection) -> None:
        super().__init__()
        self.model = model

    def forward(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and unit-length descriptors."""
        encoded = self.model.encoder(gray)[-1]
        return self.model.keypoint_decoder(encoded), self.model.descriptor_decoder(encoded)


class PlainMatcher(nn.Module):
    """LightGlue for one pair of N and N keypoints, all layers, all points; both images go through as a batch of two."""

    def __init__(self, model: LightGlueForKeypointMatching) -> None:
        super().__init__()
        self.model = model

    def forward(self, positions: Tensor, descriptors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the index in image 1 (N,), -1 for none, and the score (N,) of each keypoint of image 0.

        Args:
            positions: (2, N, 2) relative to half the image's longer side.
            descriptors: (2, N, D).
        """
        model, x = self.model, descriptors
        angles = model.positional_encoder.projector(positions)[:, None]
        rotation = (angles.cos(), angles.sin())
        for layer in model.transformer_layers:
            x = x + _mlp(layer.self_mlp, x, _attention(layer.self_attention, x, x, rotation))
            x = x + _mlp(layer.cross_mlp, x, _attention(layer.cross_attention, x, torch.stack([x[1], x[0]]), None))
        assignment = model.match_assignment_layers[-1]
        projected = assignment.final_projection(x) * assignment.scale
        similarity = projected[0] @ projected[1].T
        matchable = F.logsigmoid(assignment.matchability(x)).reshape(2, x.shape[1])
        scores = similarity.log_softmax(1) + similarity.log_softmax(0) + matchable[0][:, None] + matchable[1][None]
        best0, index0 = scores.max(dim=1)
        index1 = scores.argmax(dim=0)
        mutual = index1[index0] == torch.arange(len(index0))
        score = torch.where(mutual, best0.exp(), torch.zeros_like(best0))
        return torch.where(score > model.config.filter_threshold, index0, -torch.ones_like(index0)), score


def _mlp(mlp: MLP, x: Tensor, message: Tensor) -> Tensor:
    return mlp(torch.cat([x, message], dim=-1))


def _attention(attention: Attention, x: Tensor, other: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    query, key, value = (
        projection(source).view(2, source.shape[1], -1, attention.head_dim).transpose(1, 2)
        for projection, source in ((attention.q_proj, x), (attention.k_proj, other), (attention.v_proj, other))
    )
    if rotation is not None:
        query, key = (_turned(part, *rotation) for part in (query, key))
    weights = (query @ key.transpose(-1, -2) * attention.head_dim**-0.5).softmax(dim=-1)
    return attention.o_proj((weights @ value).transpose(1, 2).flatten(2))


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).reshape(x.shape)


def export(module: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    """Write a module as an ONNX file."""
    module.eval()  # else the export would leave its parts in training mode
    content = io.BytesIO()
    names = [f"input{index}" for index in range(len(example))]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, example, content, input_names=names, opset_version=17, dynamo=False)
    path.write_bytes(content.getvalue())
