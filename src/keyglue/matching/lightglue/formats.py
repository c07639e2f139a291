"""Parameter names of LightGlue checkpoints, as data, in both directions.

Published transformers names are the model's own. The original releases (cvg/LightGlue) pack q, k and v of the self-attention
into one matrix whose rows run over heads, then dimensions, then q, k, v, and share one projection for queries and keys
of the cross-attention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from keyglue.base.checkpoints import StateDict
from keyglue.base.errors import CheckpointError

# original name -> published name; {i} is the layer
_FIXED = {
    "posenc.Wr": "positional_encoder.projector",
    "input_proj": "input_projection",
}
_LAYERED = {
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
_QKV = re.compile(r"^transformers\.(\d+)\.self_attn\.Wqkv\.(weight|bias)$")
_QK = re.compile(r"^transformers\.(\d+)\.cross_attn\.to_qk\.(weight|bias)$")
_BUFFERS = ("confidence_thresholds",)


def is_original(names: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint has the original releases' names."""
    return any("posenc.Wr" in name for name in names)


def matcher_from_checkpoint(state_dict: Mapping[str, Tensor], num_heads: int = 4) -> StateDict:
    """Return the tensors of a LightGlue checkpoint of either format under the published names.

    Args:
        state_dict: As read from a file.
        num_heads: Attention heads, which the original's packed rows depend on.

    Raises:
        CheckpointError: An original checkpoint holds a tensor that LightGlue does not have.
    """
    if is_original(state_dict):
        return _from_original(_canonical(state_dict), num_heads)
    # "positional_encoding" is how the documentation writes it; files have "positional_encoder".
    return {name.replace("positional_encoding.", "positional_encoder.", 1): t for name, t in state_dict.items()}


def _canonical(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Bring the spellings of the original format seen in the wild to one."""
    out: StateDict = {}
    for name, tensor in state_dict.items():
        key = name.removeprefix("matcher.")
        if key in _BUFFERS:
            continue
        key = re.sub(r"^(self_attn|cross_attn)\.(\d+)\.", r"transformers.\2.\1.", key)
        key = re.sub(r"^token_confidence\.(\d+)\.(weight|bias)$", r"token_confidence.\1.token.0.\2", key)
        out[key] = tensor
    return out


def _from_original(state_dict: StateDict, num_heads: int) -> StateDict:
    out: StateDict = {}
    for name, tensor in state_dict.items():
        if match := _QKV.match(name):
            # rows: [head][dimension][q, k, v]
            rows = tensor.unflatten(0, (num_heads, -1, 3))
            for position, part in enumerate("qkv"):
                target = f"transformer_layers.{match[1]}.self_attention.{part}_proj.{match[2]}"
                out[target] = rows[:, :, position].flatten(0, 1).contiguous()
        elif match := _QK.match(name):
            for part in "qk":
                out[f"transformer_layers.{match[1]}.cross_attention.{part}_proj.{match[2]}"] = tensor.clone()
        else:
            out[_rename(name, _FIXED, _LAYERED)] = tensor
    return out


def matcher_to_original(state_dict: Mapping[str, Tensor], num_heads: int) -> StateDict:
    """Return the tensors of a matcher under the names of the original releases.

    Args:
        state_dict: Under the published names, without the detector.
        num_heads: Attention heads, which the original's packed rows depend on.

    Raises:
        CheckpointError: The original format cannot hold the model: unequal query and key projections in cross-attention,
            grouped-query attention, or attention without biases.
    """
    fixed = {new: old for old, new in _FIXED.items()}
    layered = {new: old for old, new in _LAYERED.items()}
    out: StateDict = {}
    for name, tensor in state_dict.items():
        part = re.match(r"^transformer_layers\.(\d+)\.(self|cross)_attention\.([qk]|v)_proj\.(weight|bias)$", name)
        if part is None or (part[2] == "cross" and part[3] == "v"):
            out[_rename(name, fixed, layered)] = tensor
        elif part[3] == "q":
            prefix = f"transformer_layers.{part[1]}.{part[2]}_attention"
            key = state_dict[f"{prefix}.k_proj.{part[4]}"]
            if key.shape != tensor.shape:
                raise CheckpointError("the original format cannot hold grouped-query attention.")
            if part[2] == "cross":
                if not torch.equal(tensor, key):
                    raise CheckpointError(
                        f"{prefix}: queries and keys have different projections; the original format has only one. "
                        "Save in the transformers format instead."
                    )
                out[f"transformers.{part[1]}.cross_attn.to_qk.{part[4]}"] = tensor
            else:
                value = state_dict[f"{prefix}.v_proj.{part[4]}"]
                stacked = torch.stack([t.unflatten(0, (num_heads, -1)) for t in (tensor, key, value)], dim=2)
                out[f"transformers.{part[1]}.self_attn.Wqkv.{part[4]}"] = stacked.flatten(0, 2).contiguous()
    if not any(name.endswith("Wqkv.bias") for name in out):
        raise CheckpointError("the original format cannot hold attention without biases.")
    return out


def _rename(name: str, fixed: Mapping[str, str], layered: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in fixed:
        return f"{fixed[stem]}.{kind}"
    layer = next((piece for piece in stem.split(".") if piece.isdigit()), "")
    # Only the first number is the layer; "ffn.0" keeps its own.
    pattern = stem.replace(f".{layer}", ".{i}", 1) if layer else stem
    if pattern not in layered:
        raise CheckpointError(f"{name} is not a tensor of LightGlue in the format it appears to have.")
    return f"{layered[pattern].replace('{i}', layer)}.{kind}"


def config_of_original(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings that an original checkpoint's tensors imply, as a dictionary for ``LightGlueConfig``.

    The number of heads is not in the tensors; it follows from the width of the positional encoding.

    Raises:
        CheckpointError: The file is not an original LightGlue checkpoint.
    """
    if not is_original(state_dict):
        raise CheckpointError(
            "this file comes without a config.json and is not a LightGlue checkpoint of the original releases "
            "(no tensor posenc.Wr.weight). Give the folder that holds its config.json."
        )
    tensors = _canonical(state_dict)
    width = len(tensors["log_assignment.0.final_proj.weight"])
    frequencies, inputs = tensors["posenc.Wr.weight"].shape
    projection = tensors.get("input_proj.weight")
    detector: dict[str, Any] = {"model_type": "sift"} if inputs == 4 else {"model_type": "superpoint"}
    if inputs != 4:
        detector["descriptor_decoder_dim"] = width if projection is None else projection.shape[1]
    return {
        "descriptor_dim": width,
        "num_hidden_layers": sum(1 for name in tensors if re.match(r"^log_assignment\.\d+\.final_proj\.weight$", name)),
        "num_attention_heads": width // (2 * frequencies),
        "add_scale_ori": inputs == 4,
        "keypoint_detector_config": detector,
    }
