"""The result of a scoring: numbers, and the same as tables, Markdown and JSON."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import math
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keyglue import __version__
from keyglue.base.files import atomic_write
from keyglue.scoring.protocols import (
    AUC_THRESHOLDS,
    CORRECT_BELOW,
    MATCH_THRESHOLDS,
    REPEATABILITY_THRESHOLDS,
)
from keyglue.scoring.summary import Record

_ESTIMATORS = {"auc_dlt": "DLT", "auc_opencv": "OpenCV", "auc_poselib": "PoseLib"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a title and column names."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """What ``score`` found.

    Attributes:
        dataset: Name of the set.
        kind: "homography" or "pose".
        rule: Which pairs were scored.
        settings: What was asked for: keypoints, size that the methods saw, reference frame, thresholds, seed.
        methods: A name, the detector's name, settings, "summary" and "groups" of each method.
        detectors: The same of each detector.
        pairs: For each pair its name, group, image sizes and every measurement of every method and detector.
        environment: Versions, machine, date and command.
    """

    dataset: str
    kind: str
    rule: str
    settings: Record
    methods: list[Record]
    detectors: list[Record]
    pairs: list[Record]
    environment: Record

    def summary(self, method: str) -> Record:
        """Return the summary of a method by its name; numbers are shares from 0 to 1, not percent.

        Raises:
            KeyError: No method has this name.
        """
        for entry in self.methods:
            if entry["name"] == method:
                return entry["summary"]
        raise KeyError(
            f"no method is called {method!r}; there are {', '.join(entry['name'] for entry in self.methods)}."
        )

    def to_dict(self) -> Record:
        """Return plain values; an estimation that failed has the error None."""
        return _plain(dataclasses.asdict(self))

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything, atomically; the measurements of each pair stand on a line of their own."""
        values = self.to_dict()
        pairs = ",\n".join(json.dumps(pair) for pair in values.pop("pairs"))
        head = json.dumps(values, indent=1).removesuffix("\n}")
        atomic_write(path, f'{head},\n "pairs": [\n{pairs}\n ]\n}}\n')

    def save_markdown(self, path: str | os.PathLike[str]) -> None:
        """Write the tables and how they were made, atomically."""
        atomic_write(path, self.to_markdown())

    def tables(self) -> list[Table]:
        """Return the tables: methods, then detectors, then the methods on each group of pairs."""
        tables = [_methods_table(f"{self.dataset}: {len(self.pairs)} pairs", self.kind, self.methods, "summary")]
        if self.kind == "homography":
            tables.append(_detectors_table("keypoints", self.detectors))
        for group in self.methods[0]["groups"]:
            count = self.methods[0]["groups"][group]["pairs"]
            rows = [{**method, "group": method["groups"][group]} for method in self.methods]
            tables.append(_methods_table(f"{group}: {count} pairs", self.kind, rows, "group"))
        return tables

    def to_markdown(self) -> str:
        """Return the tables and how they were made as Markdown."""
        lines = [f"# Scores on {self.dataset}", "", self.rule, ""]
        for table in self.tables():
            lines += [f"## {table.title}", "", _markdown_row(table.columns)]
            lines += [_markdown_row(["---", *["---:"] * (len(table.columns) - 1)])]
            lines += [*map(_markdown_row, table.rows), ""]
        lines += ["## How this was made", "", "```text", str(self.environment["command"]), "```", ""]
        lines += [f"- {name}: {_settings_text(values)}" for name, values in self._how().items()]
        return "\n".join(lines) + "\n"

    def _how(self) -> Record:
        how = {"settings": self.settings}
        for entry in [*self.detectors, *self.methods]:
            how[entry["name"]] = entry["settings"]
        return {**how, **{name: value for name, value in self.environment.items() if name != "command"}}


def describe_environment(command: str, device: torch.device) -> Record:
    """Return versions, machine, date and command.

    Args:
        command: The command line or call that makes the report.
        device: Where the model ran.
    """
    versions = {"keyglue": __version__, "python": platform.python_version(), "torch": torch.__version__}
    versions["numpy"] = np.__version__
    for name, module in (("opencv", "cv2"), ("poselib", "poselib")):
        version = _version(module)
        if version is not None:
            versions[name] = version
    machine = {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "device": str(device)}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"versions": versions, "machine": machine, "date": date, "command": command}


def _methods_table(title: str, kind: str, methods: list[Record], summary: str) -> Table:
    correct = f"correct@{CORRECT_BELOW[kind]}px"
    limits = "/".join(map(str, MATCH_THRESHOLDS))
    aucs = [name for name in _ESTIMATORS if any(name in method[summary] for method in methods)]
    unit = "px" if kind == "homography" else "deg"
    degrees = "/".join(map(str, AUC_THRESHOLDS[kind]))
    columns = ["method", "keypoints", "matches", f"correct ({CORRECT_BELOW[kind]} px)", f"precision {limits} px"]
    columns += ["1 px of 3 px", "kept", *(f"AUC {degrees} {unit}, {_ESTIMATORS[name]}" for name in aucs)]
    columns += ["layers", "pruned", "ms"]
    rows: list[list[str]] = []
    for method in methods:
        found = method[summary]
        shares = [found[f"precision@{limit}px"] for limit in MATCH_THRESHOLDS]
        rows.append(
            [
                method["name"],
                f"{found['keypoints']:.0f}",
                f"{found['matches']:.0f}",
                f"{found[correct]:.0f}",
                _percents(shares),
                _percents([found.get("fine_share")]),
                _percents([found.get("kept")]),
                *(_percents(found[name]) for name in aucs),
                f"{found['stop_layer']:.1f} of {method['num_layers']}" if "stop_layer" in found else "",
                _percents([found.get("pruned")]),
                f"{found['ms_match']:.0f}",
            ]
        )
    return Table(title=title, columns=columns, rows=rows)


def _detectors_table(title: str, detectors: list[Record]) -> Table:
    limits = "/".join(map(str, REPEATABILITY_THRESHOLDS))
    columns = ["detector", "keypoints", "seen by both", f"repeatability {limits} px", f"localisation {limits} px", "ms"]
    rows: list[list[str]] = []
    for detector in detectors:
        found = detector["summary"]
        errors = [found.get(f"localisation@{limit}px") for limit in REPEATABILITY_THRESHOLDS]
        rows.append(
            [
                detector["name"],
                f"{found['keypoints']:.0f}",
                f"{found['visible']:.0f}",
                _percents([found[f"repeatability@{limit}px"] for limit in REPEATABILITY_THRESHOLDS]),
                "/".join("-" if error is None else f"{error:.2f}" for error in errors),
                f"{found['ms_image']:.0f}",
            ]
        )
    return Table(title=title, columns=columns, rows=rows)


def _percents(shares: list[float | None]) -> str:
    return "/".join("" if share is None else f"{100 * share:.1f}" for share in shares)


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _settings_text(values: Any) -> str:
    """Return settings as words: "a 1, b x y"."""
    if not isinstance(values, dict):
        return " ".join(map(str, values)) if isinstance(values, list) else str(values)
    texts = {key: _settings_text(value) for key, value in values.items() if value is not None}
    return ", ".join(f"{key} {text}" for key, text in texts.items())


def _plain(value: Any) -> Any:
    """Return a value that JSON knows: no infinity, no NumPy."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value


def _version(module: str) -> str | None:
    try:
        found = importlib.import_module(module)
    except ImportError:
        return None
    return str(getattr(found, "__version__", None) or importlib.metadata.version(module))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
