"""What all models share: loading, saving, and the small questions people ask of a model."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from keyglue.base.bundled import warn_if_restricted
from keyglue.base.checkpoints import (
    WEIGHTS_NAME,
    StateDict,
    load_strictly,
    read_model,
    read_state_dict,
    write_state_dict,
)
from keyglue.base.compilation import resolve_compile
from keyglue.base.config import CONFIG_NAME, PretrainedConfig, model_folder
from keyglue.base.devices import has_fast_bfloat16, resolve_device, resolve_dtype
from keyglue.base.errors import InputError
from keyglue.base.files import atomic_path
from keyglue.base.hub import Source, upload_folder


class PreTrainedModel(nn.Module):
    """A model with a configuration that is loaded from, and saved to, a folder or the Hub.

    The constructor takes a configuration and makes random weights; it touches neither disk nor network nor device.

    Attributes:
        config: The model's settings.
        name_or_path: What the weights were loaded from; empty for random ones.
        licence: Licence of the weights, as far as it is known.
        dtype_is_free: Whether nobody asked for a floating point type, so that inference may choose one; see
            ``inference_dtype``.
        compile_mode: Mode of torch.compile for the fast path's arithmetic; None leaves it as it is.
    """

    config_class: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    main_input_name: ClassVar[str] = "pixel_values"

    config: PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise InputError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}."
            )
        self.config = config
        self.name_or_path = ""
        self.licence = ""
        self.dtype_is_free = False
        self.compile_mode: str | None = None

    @classmethod
    def from_config(cls, config: PretrainedConfig | Mapping[str, Any], **overrides: Any) -> Self:
        """Make a model with random weights from a configuration object or dictionary."""
        if isinstance(config, PretrainedConfig):
            return cls(config.replace(**overrides) if overrides else config)
        return cls(cls.config_class.from_dict(config, **overrides))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] | None = None,
        *,
        config: PretrainedConfig | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = "cpu",
        compile: bool | str = False,
        **kwargs: Any,
    ) -> Self:
        """Load a model, strictly, in evaluation mode.

        Args:
            name_or_path: Name of a bundled model (the default), a local folder, a Hub id, or a checkpoint file.
            config: Configuration to use instead of the checkpoint's own.
            dtype: Floating point type of the weights and of all computation; "auto" for that of the file. Unless told,
                weights are float32, and inference computes in what is quickest: see ``inference_dtype``.
            device: Where the weights go; "auto" for the best device there is.
            compile: True or a mode of torch.compile ("default", "reduce-overhead", which records CUDA graphs,
                "max-autotune", "max-autotune-no-cudagraphs") compiles the fast path's arithmetic at the first call,
                once for all sizes; the answers stay the same. Worth it on CUDA and in bfloat16, see
                docs/performance.md.
            **kwargs: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``force_download`` and
                ``subfolder`` choose where to look; ``torch_dtype`` and ``device_map`` are other names of ``dtype`` and
                ``device``; everything else replaces a value of the configuration.

        Raises:
            CheckpointError: The model is not there, damaged, or of another kind (HubError where the Hub says so).
            ConfigError: The configuration holds impossible values, or has no setting of the name that is given.
            InputError: ``dtype``, ``device`` or ``compile`` is unknown, or not possible on this machine.
        """
        source, overrides = Source.split(name_or_path, kwargs)
        dtype = overrides.pop("torch_dtype", None) if dtype is None else dtype
        target = resolve_device(overrides.pop("device_map", None) or device)
        mode = resolve_compile(compile, target)
        if source.single_file is not None:
            state_dict, values = cls._read_single_file(source.single_file)
        else:
            state_dict, values = read_model(source)
        if config is None:
            config = cls._config_for(values, state_dict, overrides)
        elif overrides:
            config = config.replace(**overrides)
        with torch.device("meta"):
            model = cls(config)
        load_strictly(model, cls._from_checkpoint(state_dict, model), source.name)
        floating = _stored_dtype(state_dict) if dtype == "auto" else resolve_dtype(dtype)
        model = model.to(device=target, dtype=floating).eval()
        model.name_or_path, model.licence = source.name, source.licence
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                part.dtype_is_free = dtype is None
                part.compile_mode = mode
        logging.getLogger("keyglue").info("loaded %s (licence: %s)", source.name, model.licence or "not stated")
        warn_if_restricted(source.name, model.licence)
        return model

    @classmethod
    def _config_for(cls, values: dict[str, Any], state_dict: StateDict, overrides: dict[str, Any]) -> PretrainedConfig:
        """Return the configuration for a checkpoint; models that are part of another one pick theirs out."""
        del state_dict
        return cls.config_class.from_dict(values, **overrides)

    @classmethod
    def _read_single_file(cls, path: Path) -> tuple[StateDict, dict[str, Any]]:
        """Return state dict and configuration of a checkpoint file that comes without a config.json."""
        return read_state_dict(path), {}

    @classmethod
    def _from_checkpoint(cls, state_dict: StateDict, model: nn.Module) -> StateDict:
        """Return the tensors of a checkpoint under this model's own names."""
        del model
        return state_dict

    def _to_checkpoint(self) -> StateDict:
        """Return this model's tensors under the names of the published format."""
        return self.state_dict()

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, dtype: str | torch.dtype | None = None
    ) -> None:
        """Write config.json and model.safetensors in the published format; a failure leaves what was there.

        Args:
            save_directory: Folder, made where it is not there.
            dtype: Floating point type of the file; the model's own unless told.

        Raises:
            InputError: ``save_directory`` is a file.
        """
        folder = model_folder(save_directory)
        floating = resolve_dtype(dtype, self.dtype)
        tensors = {name: value.to(floating) for name, value in self._to_checkpoint().items()}
        config = self.config.with_dtype(str(floating))
        config = config.replace(extra={**config.extra, "architectures": [type(self).__name__]})
        # Both files are complete before either takes its place.
        with atomic_path(folder / CONFIG_NAME) as settings:
            settings.write_text(config.to_json_string(), encoding="utf-8")
            write_state_dict(folder / WEIGHTS_NAME, tensors)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload model",
        card: str | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> str:
        """Save the model to the Hub and return the address of the commit.

        Args:
            repo_id: "owner/name"; the repository is made where it is not there.
            private: Whether a repository that is made is private.
            token: Access token; the one stored on this machine unless given.
            commit_message: First line of the commit.
            card: Text of README.md, with the licence in its front matter.
            dtype: Floating point type of the file.

        Raises:
            HubError: The Hub cannot be reached or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype=dtype)
            if card is not None:
                (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            return upload_folder(Path(folder), repo_id, private=private, token=token, message=commit_message)

    @property
    def device(self) -> torch.device:
        """Device that the weights are on."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the weights."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    @property
    def inference_dtype(self) -> torch.dtype:
        """Floating point type that the fast path computes in.

        It is that of the weights, or bfloat16 where they are float32 because nobody asked for a type
        (``from_pretrained`` without ``dtype``) and the device is quicker in bfloat16; never with ``hf_compatible``.
        """
        exact = bool(getattr(self.config, "hf_compatible", False))
        free = self.dtype_is_free and self.dtype == torch.float32 and not exact
        return torch.bfloat16 if free and has_fast_bfloat16(self.device) else self.dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of parameters; ``exclude_embeddings`` is accepted and changes nothing here."""
        del exclude_embeddings
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def init_weights(self) -> None:
        """Draw new random weights: normal with ``initializer_range`` for matrices, zero for biases."""
        if self.device.type == "meta":
            return  # a checkpoint's weights follow; torch would import its compiler here, which takes a second
        spread = float(getattr(self.config, "initializer_range", 0.02))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=spread)
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)


def _stored_dtype(state_dict: Mapping[str, Tensor]) -> torch.dtype:
    return next((value.dtype for value in state_dict.values() if value.is_floating_point()), torch.float32)
