"""Parameter names of SuperPoint in the original release (superpoint_v1.pth), as data, in both directions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from keyglue.base.checkpoints import StateDict
from keyglue.base.errors import CheckpointError

# original layer -> published transformers layer
SUPERPOINT_ORIGINAL_LAYERS = {
    **{f"conv{stage + 1}{part}": f"encoder.conv_blocks.{stage}.conv_{part}" for stage in range(4) for part in "ab"},
    "convPa": "keypoint_decoder.conv_score_a",
    "convPb": "keypoint_decoder.conv_score_b",
    "convDa": "descriptor_decoder.conv_descriptor_a",
    "convDb": "descriptor_decoder.conv_descriptor_b",
}


def is_original_superpoint(names: Collection[str]) -> bool:
    """Tell whether a checkpoint has the names of SuperPoint's original release."""
    return "conv1a.weight" in names and "convPa.weight" in names


def superpoint_from_original(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Return the tensors of an original SuperPoint checkpoint under the published names.

    Raises:
        CheckpointError: A tensor is not part of the original SuperPoint.
    """
    out: StateDict = {}
    for name, tensor in state_dict.items():
        layer, _, kind = name.rpartition(".")
        if layer not in SUPERPOINT_ORIGINAL_LAYERS:
            raise CheckpointError(
                f"{name} is not a tensor of the original SuperPoint (conv1a to conv4b, convPa to convDb)."
            )
        out[f"{SUPERPOINT_ORIGINAL_LAYERS[layer]}.{kind}"] = tensor
    return out


def superpoint_to_original(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Return the tensors of a published SuperPoint checkpoint under the original names.

    Raises:
        CheckpointError: The network has other stages than the original's four.
    """
    names = {new: old for old, new in SUPERPOINT_ORIGINAL_LAYERS.items()}
    out: StateDict = {}
    for name, tensor in state_dict.items():
        layer, _, kind = name.rpartition(".")
        if layer not in names:
            raise CheckpointError(
                f"the original SuperPoint layout has no place for {name}: it has four encoder stages."
            )
        out[f"{names[layer]}.{kind}"] = tensor
    if len(out) != 2 * len(names):
        raise CheckpointError(f"the original SuperPoint layout has {2 * len(names)} tensors, this network {len(out)}.")
    return out


def superpoint_config_of_original(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings that an original SuperPoint's tensors imply, as a dictionary for ``SuperPointConfig``.

    Raises:
        CheckpointError: A layer is missing.
    """
    layers = [f"{layer}.weight" for layer in ("conv1b", "conv2b", "conv3b", "conv4b", "convPa", "convPb", "convDb")]
    for name in layers:
        if name not in state_dict or state_dict[name].ndim == 0:
            raise CheckpointError(f"this is not a whole SuperPoint of the original release: {name} is missing.")
    *encoder, decoder, scores, descriptors = (len(state_dict[name]) for name in layers)
    return {
        "encoder_hidden_sizes": encoder,
        "decoder_hidden_size": decoder,
        "keypoint_decoder_dim": scores,
        "descriptor_decoder_dim": descriptors,
    }
