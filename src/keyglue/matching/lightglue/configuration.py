"""Settings of LightGlue, named as in the documented API."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from keyglue.base.config import PretrainedConfig, config_dataclass, require_bool, require_int, require_number
from keyglue.base.errors import ConfigError
from keyglue.keypoints.registry import detector_config

_CALIBRATION = 3

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@config_dataclass
class LightGlueConfig(PretrainedConfig):
    """Settings of LightGlue; the defaults are those of the published SuperPoint + LightGlue.

    Args:
        keypoint_detector_config: The detector's settings, as an object or a dictionary with a ``model_type``.
        descriptor_dim: Width D of the matcher's descriptors.
        num_hidden_layers: Layers L, each a self- and a cross-attention block.
        num_attention_heads: Heads of each attention.
        num_key_value_heads: Heads of keys and values: as many as of queries (None), one for all (1), or in between.
        depth_confidence: A pair stops when this share of its points is confident; <= 0 never stops early.
        width_confidence: Points are dropped when their matchability is at most 1 minus this; <= 0 never drops.
        filter_threshold: Score that a match must exceed.
        initializer_range: Standard deviation of random weights.
        hidden_act: Activation in the MLPs.
        attention_dropout: Dropout of attention probabilities in training.
        attention_bias: Whether the attention projections have biases.
        trust_remote_code: Accepted and kept; code that a checkpoint names is never run.
        add_scale_ori: The positional encoding reads keypoint scale and orientation too (SIFT).
        pruning_min_keypoints: Points are dropped only in pairs with more points than this in both images together;
            0 prunes always, exactly as transformers.
        match_probability: Intercept and two weights from which ``PairResult.match_probability`` follows; None where the
            model was not calibrated.
        hf_compatible: Give transformers' numbers where they differ (borders, colour, layout of hidden states).
    """

    model_type: ClassVar[str] = "lightglue"

    keypoint_detector_config: PretrainedConfig | Mapping[str, Any] | None = None
    descriptor_dim: int = 256
    num_hidden_layers: int = 9
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    depth_confidence: float = 0.95
    width_confidence: float = 0.99
    filter_threshold: float = 0.1
    initializer_range: float = 0.02
    hidden_act: str = "gelu"
    attention_dropout: float = 0.0
    attention_bias: bool = True
    trust_remote_code: bool = False
    add_scale_ori: bool = False
    pruning_min_keypoints: int = 0
    match_probability: tuple[float, ...] | None = None
    hf_compatible: bool = False

    @property
    def detector(self) -> PretrainedConfig:
        """The detector's settings."""
        return detector_config(self.keypoint_detector_config)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.descriptor_dim // self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        return cast("int", self.num_key_value_heads)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed; as many key and value heads as attention heads stay as many."""
        if self.num_key_value_heads == self.num_attention_heads and "num_attention_heads" in changes:
            changes.setdefault("num_key_value_heads", None)
        return super().replace(**changes)

    @property
    def input_dim(self) -> int:
        """Width of the detector's descriptors."""
        return int(getattr(self.detector, "descriptor_decoder_dim"))  # noqa: B009

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states, always ``descriptor_dim``."""
        return self.descriptor_dim

    @property
    def intermediate_size(self) -> int:
        """Width inside the MLPs, always twice ``descriptor_dim``."""
        return 2 * self.descriptor_dim

    def validate(self) -> None:
        """Check every value.

        Raises:
            ConfigError: A value is impossible or contradicts another one.
        """
        super().validate()
        self._settle_derived()
        for name in ("descriptor_dim", "num_hidden_layers", "num_attention_heads"):
            require_int(self, name, 1)
        heads = self.num_attention_heads
        if self.descriptor_dim % heads or self.head_dim % 2:
            raise ConfigError(
                f"descriptor_dim ({self.descriptor_dim}) must be num_attention_heads ({heads}) times an even number."
            )
        require_int(self, "num_key_value_heads", 1)
        if heads % self.key_value_heads:
            raise ConfigError(
                f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({self.key_value_heads})."
            )
        require_number(self, "depth_confidence", maximum=1)
        require_number(self, "width_confidence", maximum=1)
        require_number(self, "filter_threshold", 0, 1)
        require_number(self, "initializer_range", 0)
        require_number(self, "attention_dropout", 0, 1)
        require_int(self, "pruning_min_keypoints", 0)
        self._check_match_probability()
        for name in ("attention_bias", "trust_remote_code", "add_scale_ori", "hf_compatible"):
            require_bool(self, name)
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"unknown hidden_act {self.hidden_act!r}; known are {', '.join(sorted(ACTIVATIONS))}.")

    def _check_match_probability(self) -> None:
        weights = cast("Any", self.match_probability)
        if weights is None:
            return
        numbers = isinstance(weights, (tuple, list)) and len(cast("list[Any]", weights)) == _CALIBRATION
        if not numbers or not all(isinstance(weight, (int, float)) and math.isfinite(weight) for weight in weights):
            raise ConfigError(f"match_probability must be {_CALIBRATION} finite numbers or None, got {weights!r}.")
        object.__setattr__(self, "match_probability", tuple(float(weight) for weight in weights))

    def _settle_derived(self) -> None:
        """Make the detector's settings an object, and refuse derived sizes that contradict the width."""
        detector = detector_config(self.keypoint_detector_config)
        if self.hf_compatible and detector.model_type == "superpoint":
            detector = detector.replace(hf_compatible=True)
        object.__setattr__(self, "keypoint_detector_config", detector)
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        rest = dict(self.extra)
        for name in ("hidden_size", "intermediate_size"):
            given = rest.pop(name, None)
            if given is not None and given != getattr(self, name):
                raise ConfigError(
                    f"{name} is {given}, but descriptor_dim {self.descriptor_dim} makes it {getattr(self, name)}."
                )
        object.__setattr__(self, "extra", rest)
