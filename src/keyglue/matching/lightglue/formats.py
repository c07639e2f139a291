"""Parameter names of LightGlue checkpoints, as data, in both directions.

Published transformers names are the model's own. The original releases (cvg/LightGlue) pack q, k and v of the
self-attention into one matrix whose rows run over heads, then dimensions, then q, k, v, and share one projection for
queries and keys of the cross-attention.

The released files call a layer's blocks ``self_attn.{i}`` and ``cross_attn.{i}``; the code that loads them renames them
to ``transformers.{i}.self_attn`` and so on, which is how later files are written, and these.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from keyglue.base.checkpoints import StateDict
from keyglue.base.errors import CheckpointError

# original name -> published name; {i} is the layer
_NAMES = {
    "posenc.Wr": "positional_encoder.projector",
    "input_proj": "input_projection",
    "transformers.{i}.self_attn.out_proj": "transformer_layers.{i}.self_attention.o_proj",
    "transformers.{i}.self_attn.ffn.0": "transformer_layers.{i}.self_mlp.fc1",
    "transformers.{i}.self_attn.ffn.1": "transformer_layers.{i}.self_mlp.layer_norm",
    "transformers.{i}.self_attn.ffn.3": "transformer_layers.{i}.self_mlp.fc2",
    "transformers.{i}.cross_attn.to_v": "transformer_layers.{i}.cross_attention.v_proj",
    "transformers.{i}.cross_attn.to_out": "transformer_layers.{i}.cross_attention.o_proj",
    "transformers.{i}.cross_attn.ffn.0": "transformer_layers.{i}.cross_mlp.fc1",
    "transformers.{i}.cross_attn.ffn.1": "transformer_layers.{i}.cross_mlp.layer_norm",
    "transformers.{i}.cross_attn.ffn.3": "transformer_layers.{i}.cross_mlp.fc2",
    "log_assignment.{i}.matchability": "match_assignment_layers.{i}.matchability",
    "log_assignment.{i}.final_proj": "match_assignment_layers.{i}.final_projection",
    "token_confidence.{i}.token.0": "token_confidence.{i}.token",
}
_ORIGINAL_NAMES = {published: original for original, published in _NAMES.items()}
_PACKED = re.compile(r"transformers\.(\d+)\.(self_attn\.Wqkv|cross_attn\.to_qk)\.(weight|bias)")
_QUERY_KEY = re.compile(r"transformer_layers\.(\d+)\.(self|cross)_attention\.([qkv])_proj\.(weight|bias)")
# Spellings seen in the wild -> the one above.
_SPELLINGS = (
    (re.compile(r"^matcher\."), ""),
    (re.compile(r"^(self_attn|cross_attn)\.(\d+)\."), r"transformers.\2.\1."),
    (re.compile(r"^token_confidence\.(\d+)\.(weight|bias)$"), r"token_confidence.\1.token.0.\2"),
)
# Computed from the number of layers, so nothing that has to be stored.
_BUFFERS = ("confidence_thresholds",)


def is_original(names: Collection[str]) -> bool:
    """Tell whether a checkpoint has the original releases' names."""
    return any(_spell(name).startswith(("posenc.", "log_assignment.")) for name in names)


def matcher_from_checkpoint(state_dict: Mapping[str, Tensor], num_heads: int = 4) -> StateDict:
    """Return the tensors of a LightGlue checkpoint of either format under the published names.

    Args:
        state_dict: As read from a file.
        num_heads: Attention heads, which the original's packed rows depend on.

    Raises:
        CheckpointError: An original checkpoint holds a tensor that LightGlue does not have, or one of an odd shape.
    """
    if is_original(state_dict):
        return _from_original(_canonical(state_dict), num_heads)
    # "positional_encoding" is how the documentation writes it; files have "positional_encoder".
    return {name.replace("positional_encoding.", "positional_encoder.", 1): t for name, t in state_dict.items()}


def _spell(name: str) -> str:
    for pattern, replacement in _SPELLINGS:
        name = pattern.sub(replacement, name)
    return name


def _canonical(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Bring the spellings of the original format seen in the wild to one."""
    out: StateDict = {}
    for name, tensor in state_dict.items():
        key = _spell(name)
        if key in out:
            raise CheckpointError(f"this checkpoint holds {key} twice, in two spellings.")
        if key not in _BUFFERS:
            out[key] = tensor
    return out


def _from_original(state_dict: StateDict, num_heads: int) -> StateDict:
    out: StateDict = {}
    for name, tensor in state_dict.items():
        packed = _PACKED.fullmatch(name)
        if packed is None:
            out[_rename(name, _NAMES)] = tensor
            continue
        layer, block, kind = packed.groups()
        if block == "cross_attn.to_qk":
            for part in "qk":
                out[f"transformer_layers.{layer}.cross_attention.{part}_proj.{kind}"] = tensor.clone()
            continue
        if tensor.ndim == 0 or len(tensor) % (3 * num_heads):
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)}: its rows are not q, k and v of {num_heads} heads."
            )
        # Rows run over [head][dimension][q, k, v].
        rows = tensor.reshape(num_heads, -1, 3, *tensor.shape[1:])
        for position, part in enumerate("qkv"):
            target = f"transformer_layers.{layer}.self_attention.{part}_proj.{kind}"
            out[target] = rows[:, :, position].flatten(0, 1).contiguous()
    return out


def matcher_to_original(state_dict: Mapping[str, Tensor], num_heads: int) -> StateDict:
    """Return the tensors of a matcher under the names of the original releases.

    Args:
        state_dict: All tensors of a matcher under the published names, without the detector.
        num_heads: Attention heads, which the original's packed rows depend on.

    Raises:
        CheckpointError: The original format cannot hold the model: unequal query and key projections in
            cross-attention, grouped-query attention, or attention without biases.
    """
    if not any(name.endswith("q_proj.bias") for name in state_dict):
        raise CheckpointError("the original format cannot hold attention without biases. Keep the transformers format.")
    out: StateDict = {}
    for name, tensor in state_dict.items():
        part = _QUERY_KEY.fullmatch(name)
        if part is None or (part[2], part[3]) == ("cross", "v"):
            out[_rename(name, _ORIGINAL_NAMES)] = tensor
        elif part[3] == "q":
            prefix, kind = f"transformer_layers.{part[1]}.{part[2]}_attention", part[4]
            key, value = state_dict[f"{prefix}.k_proj.{kind}"], state_dict[f"{prefix}.v_proj.{kind}"]
            if key.shape != tensor.shape:
                raise CheckpointError(
                    "the original format cannot hold grouped-query attention. Keep the transformers format."
                )
            if part[2] == "self":
                stacked = torch.stack([t.unflatten(0, (num_heads, -1)) for t in (tensor, key, value)], dim=2)
                out[f"transformers.{part[1]}.self_attn.Wqkv.{kind}"] = stacked.flatten(0, 2).contiguous()
            elif torch.equal(tensor, key):
                out[f"transformers.{part[1]}.cross_attn.to_qk.{kind}"] = tensor
            else:
                raise CheckpointError(
                    f"{prefix}: queries and keys have different projections ({kind}); the original format has one for "
                    "both. Keep the transformers format."
                )
    return out


def _rename(name: str, names: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    layer = next((piece for piece in stem.split(".") if piece.isdigit()), "")
    # Only the first number is the layer; "ffn.0" keeps its own.
    pattern = stem.replace(f".{layer}", ".{i}", 1) if layer else stem
    if pattern not in names:
        raise CheckpointError(f"{name} is not a tensor of LightGlue in the format that this checkpoint seems to have.")
    return f"{names[pattern].replace('{i}', layer)}.{kind}"


def config_of_original(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings that an original checkpoint's tensors imply, as a dictionary for ``LightGlueConfig``.

    The number of heads is not in the tensors; it follows from the width of the positional encoding.

    Raises:
        CheckpointError: The file is not an original LightGlue checkpoint, or of a kind that keyglue does not have.
    """
    tensors = _canonical(state_dict)
    encoding = tensors.get("posenc.Wr.weight")
    final = tensors.get("log_assignment.0.final_proj.weight")
    if encoding is None or final is None or encoding.ndim != 2 or final.ndim != 2:
        raise CheckpointError(
            "this file comes without a config.json and is not a LightGlue checkpoint of the original releases "
            "(no matrix posenc.Wr.weight or log_assignment.0.final_proj.weight). Give the folder with its config.json."
        )
    width, (frequencies, inputs) = len(final), encoding.shape
    if inputs not in (2, 4) or frequencies == 0 or width % (2 * frequencies):
        raise CheckpointError(
            f"posenc.Wr.weight has shape {tuple(encoding.shape)} in a LightGlue {width} wide. Accepted are 2 columns "
            "(x, y) or 4 (with scale and orientation), and half as many rows as an attention head is wide."
        )
    projection = tensors.get("input_proj.weight")
    detector: dict[str, Any] = {"model_type": "sift"}
    if inputs == 2:
        input_dim = width if projection is None or projection.ndim != 2 else projection.shape[1]
        detector = {"model_type": "superpoint", "descriptor_decoder_dim": input_dim}
    layers = sum(re.fullmatch(r"log_assignment\.\d+\.final_proj\.weight", name) is not None for name in tensors)
    return {
        "descriptor_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // (2 * frequencies),
        "add_scale_ori": inputs == 4,
        "keypoint_detector_config": detector,
    }
