"""LightGlue: the loop over layers (figure 3 of the paper), for any number of pairs of any number of keypoints.

Every pair stops and drops points by itself. Pairs that stop and points that are dropped leave the tensors, so the work
shrinks; the answer of a pair does not depend on the others.

Shapes: T tokens of all images, M and N keypoints of a pair's two images, D width of the matcher.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from keyglue.base.checkpoints import StateDict
from keyglue.base.derived import Derived
from keyglue.base.errors import InputError
from keyglue.base.pretrained import PreTrainedModel
from keyglue.base.types import Features, Matches
from keyglue.images.coordinates import normalize_keypoints
from keyglue.keypoints.superpoint import JOINT_PREFIX
from keyglue.matching.lightglue.assignment import MatchAssignment
from keyglue.matching.lightglue.confidence import TokenConfidence, confidence_threshold, stops_early
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.fast import ComputePath, FastWeights, choose_path
from keyglue.matching.lightglue.formats import config_of_original, matcher_from_checkpoint
from keyglue.matching.lightglue.layer import TransformerLayer
from keyglue.matching.lightglue.positional import PositionalEncoder
from keyglue.matching.lightglue.pruning import points_to_keep
from keyglue.matching.lightglue.ragged import Packing, Tokens
from keyglue.matching.lightglue.recording import Recorder
from keyglue.matching.lightglue.results import Results

FeaturePair = tuple[Features, Features]


class LightGlueMatcher(PreTrainedModel):
    """The matcher alone: pairs of Features in, Matches out.

    Args:
        config: Settings; the weights are random.
    """

    config_class = LightGlueConfig
    config: LightGlueConfig

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__(config)
        layers = range(config.num_hidden_layers)
        project = config.input_dim != config.descriptor_dim
        self.input_projection = nn.Linear(config.input_dim, config.descriptor_dim) if project else nn.Identity()
        self.positional_encoder = PositionalEncoder(config)
        self.transformer_layers = nn.ModuleList([TransformerLayer(config) for _ in layers])
        self.match_assignment_layers = nn.ModuleList([MatchAssignment(config) for _ in layers])
        self.token_confidence = nn.ModuleList([TokenConfidence(config) for _ in layers[:-1]])
        self.init_weights()
        self._folded: Derived[FastWeights] = Derived()

    def without_adaptivity(self) -> Self:
        """Return this model with all layers and all keypoints, never stopping early; the weights are the same ones."""
        return self._with(depth_confidence=-1.0, width_confidence=-1.0)

    def without_threshold(self) -> Self:
        """Return this model with all mutual best matches, whatever their scores; the weights are the same ones."""
        return self._with(filter_threshold=0.0)

    def _with(self, **settings: float) -> Self:
        changed = copy.copy(self)
        changed.config = self.config.replace(**settings)
        return changed

    def match(self, features0: Features, features1: Features) -> Matches:
        """Match the features of two images."""
        with torch.no_grad():
            return self.match_pairs([(features0, features1)])[0]

    def match_pairs(self, pairs: Sequence[FeaturePair], record: Recorder | None = None) -> list[Matches]:
        """Match pairs of images, of any numbers of keypoints, each as if it were alone.

        Args:
            pairs: Features of image 0 and 1 of each pair.
            record: Takes down hidden states and attentions.

        Raises:
            InputError: The descriptors are not as wide as the model expects, or scale and orientation are missing.
        """
        path = choose_path(self, self._folded, record)
        batches = [pairs] if path.together else [[pair] for pair in pairs]
        return [matches for batch in batches for matches in self._run(batch, path)]

    def _run(self, pairs: Sequence[FeaturePair], path: ComputePath) -> list[Matches]:
        """Run pairs through the layers, each until it stops."""
        tokens = self.embed(pairs, path.dtype)
        results = Results(tokens.packing, tokens.x.device)
        tokens = tokens.rest()
        for index in range(self.config.num_hidden_layers):
            if not tokens.pairs:
                break
            tokens = tokens.updated(path.layer(index, tokens))
            results.ran_layer(tokens)
            unconfident, stays = self._flags(index, tokens, path)
            stopping = self._stopping(index, tokens, unconfident, results.original_points)
            results.finish(tokens, stopping, functools.partial(path.matches, index))
            tokens = tokens.rest(stopping, stays)
        return results.matches()

    def embed(self, pairs: Sequence[FeaturePair], dtype: torch.dtype | None = None) -> Tokens:
        """Return the tokens that enter the first layer: projected descriptors and positional encodings.

        Args:
            pairs: Features of image 0 and 1 of each pair.
            dtype: Type of the tokens; what the projection of the descriptors gives unless told.

        Raises:
            InputError: The descriptors are not as wide as the model expects, or scale and orientation are missing.
        """
        images = [features for pair in pairs for features in pair]
        for features in images:
            if features.descriptors.shape[1] != self.config.input_dim:
                raise InputError(
                    f"this matcher takes descriptors of {self.config.input_dim} values, got "
                    f"{features.descriptors.shape[1]} ({features.detector or 'unknown detector'}). "
                    "Use the detector that the matcher was trained with."
                )
        packing = Packing(tuple(len(features) for features in images))
        rows = [features.descriptors.to(device=self.device, dtype=self.dtype) for features in images]
        x = self.input_projection(torch.cat(rows) if rows else torch.zeros(0, self.config.input_dim))
        positions = [self._position(features) for features in images]
        rotation = self.positional_encoder(torch.cat(positions) if positions else torch.zeros(0, 2))
        origin = torch.arange(len(x), device=x.device)
        return Tokens(x if dtype is None else x.to(dtype), rotation, origin, packing, tuple(range(len(pairs))))

    def _position(self, features: Features) -> Tensor:
        """Return (N, 2) positions relative to half the image's longer side, or (N, 4) with scale and orientation."""
        position = normalize_keypoints(features.keypoints.to(self.device, torch.float32), features.image_size)
        if not self.config.add_scale_ori:
            return position
        if features.scales is None or features.orientations is None:
            raise InputError("this matcher reads keypoint scales and orientations; these features have none.")
        more = torch.stack([features.scales, features.orientations], dim=1)
        return torch.cat([position, more.to(position)], dim=1)

    def _flags(self, index: int, tokens: Tokens, path: ComputePath) -> tuple[Tensor | None, Tensor | None]:
        """Return which tokens are not confident and which stay, (T,) booleans on the CPU; None where that is fixed."""
        depth, width = self.config.depth_confidence, self.config.width_confidence
        if self.training or max(depth, width) <= 0 or index == self.config.num_hidden_layers - 1:
            return None, None
        confidence = path.confidence(index, tokens.x)
        threshold = confidence_threshold(index, self.config.num_hidden_layers)
        flags = [confidence < threshold]
        if width > 0:
            flags.append(points_to_keep(path.matchability(index, tokens.x), confidence, threshold, width))
        # The one transfer of a layer: what follows is decided on the CPU, and a GPU is told without waiting for it.
        unconfident, *rest = torch.stack(flags).cpu()
        if not rest:
            return unconfident, None
        stays = rest[0]
        for start, stop in tokens.packing.spans:
            if stop - start <= self.config.pruning_min_keypoints:
                stays[start:stop] = True
        return unconfident, stays

    def _stopping(
        self, index: int, tokens: Tokens, unconfident: Tensor | None, original_points: Sequence[int]
    ) -> list[int]:
        """Return the positions of the pairs that stop after this layer; after the last layer all do.

        Args:
            index: The layer.
            tokens: The tokens after it.
            unconfident: (T,) tokens that are not confident; None where nothing is adaptive.
            original_points: Number of tokens that each pair began with.
        """
        if index == self.config.num_hidden_layers - 1:
            return list(range(len(tokens.pairs)))
        depth = self.config.depth_confidence
        if unconfident is None or depth <= 0:
            return []
        return [
            position
            for position, (pair, (start, stop)) in enumerate(zip(tokens.pairs, tokens.packing.spans, strict=True))
            if stops_early(int(unconfident[start:stop].sum()), original_points[pair], depth)
        ]

    def tokens_per_layer(self, pairs: Sequence[FeaturePair]) -> Iterator[Tokens]:
        """Yield the tokens after each layer with no pair stopping and no point dropped, as training needs them."""
        tokens = self.embed(pairs)
        for layer in self.transformer_layers:
            tokens = tokens.updated(layer(tokens))
            yield tokens

    def assignment(self, index: int) -> MatchAssignment:
        """Return the assignment layer that belongs to layer ``index``."""
        return cast("MatchAssignment", self.match_assignment_layers[index])

    def assign(self, index: int, tokens: Tokens) -> list[Tensor]:
        """Return each pair's (M + 1, N + 1) log assignment from its tokens after layer ``index``."""
        layer, slices = self.assignment(index), tokens.packing.slices
        return [layer(tokens.x[slices[i]], tokens.x[slices[i + 1]]) for i in range(0, len(slices), 2)]

    def log_assignments(self, features0: Features, features1: Features) -> list[Tensor]:
        """Return the (M + 1, N + 1) log assignment after each layer for one pair, with nothing stopped or dropped."""
        layers = enumerate(self.tokens_per_layer([(features0, features1)]))
        return [self.assign(index, tokens)[0] for index, tokens in layers]

    @classmethod
    def _read_single_file(cls, path: Path) -> tuple[StateDict, dict[str, Any]]:
        state_dict, values = super()._read_single_file(path)
        return state_dict, values or config_of_original(state_dict)

    @classmethod
    def _from_checkpoint(cls, state_dict: StateDict, model: nn.Module) -> StateDict:
        named = matcher_from_checkpoint(state_dict, cast("LightGlueMatcher", model).config.num_attention_heads)
        return {name: tensor for name, tensor in named.items() if not name.startswith(JOINT_PREFIX)}
