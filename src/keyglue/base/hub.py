"""Where a model's files come from: the package, a folder, a single file, or the Hub's cache and server."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Self

from keyglue.base.bundled import DEFAULT_MODEL, MODELS, find_model, read_licence
from keyglue.base.errors import CheckpointError, HubError
from keyglue.base.hub_client import HubRepository, upload_folder

__all__ = ["Source", "upload_folder"]

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_WHERE = ("revision", "cache_dir", "local_files_only", "token", "force_download", "subfolder")
# Arguments of other libraries' from_pretrained that choose between implementations; here there is one, and it runs no
# code that a checkpoint names.
_IGNORED = ("trust_remote_code", "use_safetensors", "low_cpu_mem_usage", "attn_implementation", "weights_only")
# A file of this name with a config.json beside it stands for its folder.
_WEIGHTS_NAME, _CONFIG_NAME = "model.safetensors", "config.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """One model, wherever its files are; files are fetched when they are asked for.

    Attributes:
        name: As given by the user.
        folder: Local folder, or None for the Hub.
        single_file: A checkpoint given by itself, without its folder's other files.
        options: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``force_download``, ``subfolder``.
    """

    name: str
    folder: Path | None
    single_file: Path | None
    options: Mapping[str, Any]

    @classmethod
    def split(
        cls, name_or_path: str | os.PathLike[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[Self, dict[str, Any]]:
        """Separate the arguments that say where to look from the others and find the model.

        Raises:
            CheckpointError: The name is neither bundled, nor on disk, nor of the form of a Hub id.
        """
        options = {key: value for key, value in cls.where(kwargs).items() if value is not None}
        others = {key: value for key, value in kwargs.items() if key not in (*_WHERE, *_IGNORED)}
        name = os.fspath(name_or_path) if name_or_path is not None else DEFAULT_MODEL
        entry = find_model(name)
        path = Path(name).expanduser()
        if entry is not None and entry.bundled:
            return cls(name, entry.folder, None, options), others
        if path.is_dir():
            folder = path / options["subfolder"] if "subfolder" in options else path
            return cls(name, folder, None, options), others
        if path.is_file():
            in_folder = path.name in (_WEIGHTS_NAME, _CONFIG_NAME) and (path.parent / _CONFIG_NAME).is_file()
            return cls(name, path.parent if in_folder else None, None if in_folder else path, options), others
        looks_like_file = path.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".json")
        if not _HUB_ID.match(name) or looks_like_file:
            bundled = ", ".join(entry.name for entry in MODELS if entry.bundled)
            raise CheckpointError(
                f"there is no model {name!r}. Give a bundled name ({bundled}), a folder with config.json and "
                "model.safetensors, a .pth or .safetensors file, or a Hub id such as 'owner/model'."
            )
        return cls(name, None, None, options), others

    @staticmethod
    def where(kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return only those arguments that say where to look."""
        return {key: value for key, value in kwargs.items() if key in _WHERE}

    @functools.cached_property
    def _repository(self) -> HubRepository:
        return HubRepository(self.name, self.options)

    @property
    def place(self) -> str:
        """Where the files are, for messages."""
        return str(self.single_file or self.folder or f"{self.name} on the Hub")

    def find(self, filename: str) -> Path | None:
        """Return the local path of one of the model's files, or None where the model has no such file.

        Raises:
            HubError: The Hub cannot be reached, or says that the model, revision or permission is not there.
        """
        if self.single_file is not None:
            return None
        if self.folder is not None:
            path = self.folder / filename
            return path if path.is_file() else None
        return self._repository.find(filename)

    def file(self, filename: str) -> Path:
        """Return the local path of one of the model's files.

        Raises:
            CheckpointError: The model has no such file.
        """
        path = self.find(filename)
        if path is None:
            raise CheckpointError(f"{self.place} has no {filename}.")
        return path

    @property
    def licence(self) -> str:
        """Licence that is known for the model, or that its model card states; empty where neither says."""
        entry = find_model(self.name)
        if entry is not None:
            return entry.licence
        try:
            card = self.find("README.md")
        except HubError:  # the card is not in the cache: no reason not to load the weights
            return ""
        return read_licence(card) if card is not None else ""
