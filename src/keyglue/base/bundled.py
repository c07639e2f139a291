"""The models that come with the package, and what a licence means for loading."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path

from keyglue.base.errors import LicenceWarning

WEIGHTS_FOLDER = Path(__file__).parent.parent / "weights"
DEFAULT_MODEL = "keyglue-small"
# As licences are named on model cards; "academic free license" is a permissive one.
_NON_COMMERCIAL = re.compile(
    r"non-?commercial|non-?profit|(?<![a-z])nc(?![a-z])|academic(?! free)|research[- ](only|use|purposes)",
    re.IGNORECASE,
)
_warned: set[str] = set()


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One model that ``from_pretrained`` knows by name.

    Attributes:
        name: What to pass to ``from_pretrained``.
        licence: Licence of the weights (SPDX name where there is one).
        description: One line for people.
        bundled: Whether it comes with the package; others are fetched from the Hub.
    """

    name: str
    licence: str
    description: str
    bundled: bool

    @property
    def folder(self) -> Path:
        """Folder of a bundled model."""
        return WEIGHTS_FOLDER / self.name


MODELS = (
    ModelEntry(DEFAULT_MODEL, "Apache-2.0", "SuperPoint-class detector and a LightGlue of 6 layers, 128 wide", True),
    ModelEntry("ETH-CVG/lightglue_superpoint", "non-commercial (SuperPoint weights)", "LightGlue on SuperPoint", False),
    ModelEntry("magic-leap-community/superpoint", "non-commercial", "SuperPoint, the detector alone", False),
)


def find_model(name: str) -> ModelEntry | None:
    """Return the entry of a model that is known by name, or None."""
    return next((entry for entry in MODELS if entry.name == name), None)


def read_licence(card: Path) -> str:
    """Return the licence that a model card (a README.md with front matter) states; empty where it states none.

    Only the plain forms are read, ``license: name`` and a list of names; of ``license: other`` the ``license_name``.
    """
    try:
        lines = card.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return ""
    if not lines or lines[0].strip() != "---":
        return ""
    fields: dict[str, list[str]] = {}
    values: list[str] = []
    for line in lines[1:]:
        if line.strip() == "---":
            break
        text = line.split(" #")[0].strip()
        if text.startswith("- "):
            values.append(_unquoted(text[2:]))
        elif line[:1].isspace() or ":" not in line:
            # Inside a nested entry, where "license" would be that of something else.
            values = []
        else:
            key, _, value = text.partition(":")
            values = [_unquoted(value)] if value.strip() else []
            fields[key.strip().lower()] = values
    if fields.get("license") == ["other"]:
        return ", ".join(fields.get("license_name") or ["other"])
    return ", ".join(fields.get("license", []))


def _unquoted(value: str) -> str:
    return value.strip().strip("'\"")


def warn_if_restricted(name: str, licence: str) -> None:
    """Warn, once a model and process, when a licence forbids commercial use."""
    if name in _warned or not _NON_COMMERCIAL.search(licence):
        return
    _warned.add(name)
    warnings.warn(
        f"the weights of {name} are licensed {licence!r}: commercial use is not allowed. "
        f"{DEFAULT_MODEL} (Apache-2.0) comes with keyglue.",
        LicenceWarning,
        stacklevel=3,
    )
