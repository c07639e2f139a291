"""Detector and matcher in one model, with the documented transformers-style interface.

Shapes: B pairs, C channels, h and w pixels of the (padded) images, K keypoints (the most of any image of the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyglue.base.checkpoints import StateDict
from keyglue.base.errors import CheckpointError, InputError
from keyglue.base.outputs import LightGlueKeypointMatchingOutput, pad_stack
from keyglue.base.pretrained import PreTrainedModel
from keyglue.base.types import Features, Matches
from keyglue.images.coordinates import pixels_to_relative
from keyglue.keypoints.detector import content_sizes
from keyglue.keypoints.registry import make_detector
from keyglue.keypoints.superpoint import JOINT_PREFIX
from keyglue.matching.lightglue.assignment import mutual_matches
from keyglue.matching.lightglue.configuration import LightGlueConfig
from keyglue.matching.lightglue.formats import is_original, matcher_from_checkpoint
from keyglue.matching.lightglue.lightglue import FeaturePair, LightGlueMatcher
from keyglue.matching.lightglue.loss import matching_loss
from keyglue.matching.lightglue.ragged import Packing
from keyglue.matching.lightglue.recording import Recorder


class LightGlueForKeypointMatching(LightGlueMatcher):
    """A keypoint detector and LightGlue: image pairs in, matches out.

    Args:
        config: Settings; the weights are random.
    """

    def __init__(self, config: LightGlueConfig) -> None:
        super().__init__(config)
        self.keypoint_detector = make_detector(config.detector)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        image_sizes: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        features: Sequence[FeaturePair] | None = None,
    ) -> LightGlueKeypointMatchingOutput | tuple[Any, ...]:
        """Match pairs of images.

        Args:
            pixel_values: (B, 2, C, h, w), C = 1 or 3, values from 0 to 1, padded at the right and bottom if need be.
            labels: (B, 2, K) index of the true match in the other image, -1 for none, -100 for unknown: the output
                holds a loss. Depth and width are then not adaptive, and the detector gets no gradient.
            output_attentions: Return the attention probabilities of all layers.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object (default) or a tuple.
            image_sizes: (B, 2, 2) height and width of the content of padded images.
            pixel_mask: (B, 2, h, w) nonzero on the content of padded images, instead of ``image_sizes``.
            features: B pairs of Features to match instead of ``pixel_values``.

        Raises:
            InputError: A shape, type or value is not as described.
        """
        pairs = self._pairs(pixel_values, image_sizes, pixel_mask, features)
        config = self.config
        start = Packing(tuple(len(image) for pair in pairs for image in pair))
        record = Recorder(
            start,
            states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            attentions=config.output_attentions if output_attentions is None else output_attentions,
        )
        if labels is not None:
            loss, last = matching_loss(self, pairs, _unpadded(labels, pairs))
            output = _assemble(pairs, [self._all_layers(log_assignment) for log_assignment in last], loss)
        else:
            output = _assemble(pairs, self.match_pairs(pairs, record if record.wanted else None), None)
        output.hidden_states = record.hidden_states(per_image=config.hf_compatible)
        output.attentions = record.attentions(per_image=config.hf_compatible)
        as_object = config.return_dict if return_dict is None else return_dict
        return output if as_object else output.to_tuple()

    def extract(self, image: Tensor, *, mask: Tensor | None = None) -> Features:
        """Find and describe the keypoints of one image (C, h, w), values from 0 to 1; keep them to match many times."""
        # Not inference mode: its tensors could not be used in training later.
        with torch.no_grad():
            return self.keypoint_detector.extract(image, mask=mask)

    def _pairs(
        self,
        pixel_values: Tensor | None,
        image_sizes: Tensor | None,
        pixel_mask: Tensor | None,
        features: Sequence[FeaturePair] | None,
    ) -> list[FeaturePair]:
        if (pixel_values is None) == (features is None):
            raise InputError("give either pixel_values or features.")
        if features is not None:
            if len(features) == 0 or any(len(pair) != 2 for pair in features):
                raise InputError("features must hold one or more pairs (Features of image 0, Features of image 1).")
            return [(first, second) for first, second in features]
        if pixel_values is None or pixel_values.ndim != 5 or pixel_values.shape[1] != 2 or len(pixel_values) == 0:
            given = None if pixel_values is None else tuple(pixel_values.shape)
            raise InputError(
                f"pixel_values must have shape (B, 2, C, h, w) with B >= 1: two images a pair, got {given}."
            )
        images = pixel_values.flatten(0, 1)
        sizes = content_sizes(
            images,
            None if image_sizes is None else image_sizes.reshape(-1, 2),
            None if pixel_mask is None else pixel_mask.reshape(-1, *pixel_mask.shape[-2:]),
        )
        # The detector is frozen in matcher training, as in the paper (section 4).
        with torch.no_grad():
            found = self.keypoint_detector.extract_batch(images, sizes)
        return [(found[index], found[index + 1]) for index in range(0, len(found), 2)]

    def _all_layers(self, log_assignment: Tensor) -> Matches:
        """Return the matches of a pair that ran through all layers with all its points."""
        found = mutual_matches(log_assignment.detach(), self.config.filter_threshold)
        layers = self.config.num_hidden_layers
        count = len(found[0]) + len(found[1])
        return Matches(
            matches0=found[0],
            matches1=found[1],
            matching_scores0=found[2],
            matching_scores1=found[3],
            prune0=torch.full_like(found[0], layers),
            prune1=torch.full_like(found[1], layers),
            stop_layer=layers,
            tokens_per_layer=(count,) * layers,
        )

    @classmethod
    def _read_single_file(cls, path: Path) -> tuple[StateDict, dict[str, Any]]:
        state_dict, values = PreTrainedModel._read_single_file.__func__(cls, path)  # pyright: ignore[reportFunctionMemberAccess]
        if not values:
            raise CheckpointError(
                f"{path.name} alone does not say which detector it belongs to. Load the matcher with "
                "LightGlueMatcher.from_pretrained, or join it with a detector: "
                "keyglue convert MATCHER --detector FILE -o FOLDER."
            )
        return state_dict, values

    @classmethod
    def _from_checkpoint(cls, state_dict: StateDict, model: Any) -> StateDict:
        detector = {name: t for name, t in state_dict.items() if name.startswith(JOINT_PREFIX)}
        matcher = {name: t for name, t in state_dict.items() if name not in detector}
        if is_original(matcher):
            matcher = matcher_from_checkpoint(matcher, model.config.num_attention_heads)
        return {**matcher_from_checkpoint(matcher), **detector}


def _unpadded(labels: Tensor, pairs: Sequence[FeaturePair]) -> list[tuple[Tensor, Tensor]]:
    most = max(len(image) for pair in pairs for image in pair)
    if labels.shape != (len(pairs), 2, most):
        raise InputError(f"labels must have shape {(len(pairs), 2, most)} (B, 2, K), got {tuple(labels.shape)}.")
    return [(row[0, : len(pair[0])], row[1, : len(pair[1])]) for row, pair in zip(labels.long(), pairs, strict=True)]


def _assemble(
    pairs: Sequence[FeaturePair], found: Sequence[Matches], loss: Tensor | None
) -> LightGlueKeypointMatchingOutput:
    """Pad the answers of all pairs into the documented tensors."""
    images = [image for pair in pairs for image in pair]
    most = max(len(image) for image in images)

    def stack(rows: list[Tensor], value: float = 0) -> Tensor:
        return pad_stack(rows, most, value).unflatten(0, (-1, 2))

    device = found[0].matches0.device
    image_sizes = torch.tensor([image.image_size for image in images], device=device)
    relative = pixels_to_relative(
        pad_stack([image.keypoints.to(device, torch.float32) for image in images], most), image_sizes
    )
    counts = [m.tokens_per_layer for m in found]
    layers = max(len(count) for count in counts)
    return LightGlueKeypointMatchingOutput(
        loss=loss,
        matches=stack([row for m in found for row in (m.matches0, m.matches1)], -1),
        matching_scores=stack([row for m in found for row in (m.matching_scores0, m.matching_scores1)]),
        keypoints=relative.unflatten(0, (-1, 2)),
        prune=stack([row for m in found for row in (m.prune0, m.prune1)]),
        mask=stack([torch.ones(len(image), dtype=torch.int32, device=device) for image in images]),
        image_sizes=image_sizes.unflatten(0, (-1, 2)),
        stop_layers=torch.tensor([m.stop_layer for m in found], device=device),
        tokens_per_layer=tuple(sum(count[i] for count in counts if i < len(count)) for i in range(layers)),
    )
