"""What the benchmarks share: the machine in words, fair measuring, and writing results down."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keyglue import LightGlueConfig, LightGlueForKeypointMatching, SuperPointForKeypointDetection
from keyglue.base import native
from keyglue.base.devices import has_fast_bfloat16
from keyglue.images.read import read_image
from keyglue.images.resize import resize_image, to_grayscale

ASSETS = Path(__file__).parent.parent / "assets"
RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("torch", "keyglue-native", "transformers", "kornia", "onnxruntime", "openvino", "numpy")
# What keeps the libraries to an instruction set: keyglue's kernels, oneDNN (torch, OpenVINO), MKL and ATen (torch).
_ISA = {
    "avx512": ("avx512", "AVX512_CORE_VNNI", "AVX512", "avx512"),
    "avx2": ("avx2", "AVX2", "AVX2", "avx2"),
}
_ISA_VARIABLES = ("KEYGLUE_ISA", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd")


@dataclasses.dataclass(frozen=True)
class Times:
    """Milliseconds of every round.

    Attributes:
        cpu: Of the processor, of all threads together.
        wall: On the clock.
    """

    cpu: list[float]
    wall: list[float]

    def summary(self) -> dict[str, float]:
        """Return medians and minima, to a tenth."""
        return {
            f"{what}_{kind}": round(function(values), 1)
            for kind, values in (("cpu", self.cpu), ("wall", self.wall))
            for what, function in (("median", statistics.median), ("min", min))
        }


def measure(runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, Times]:
    """Time functions in turn, so that what else the machine does meets all of them.

    Args:
        runs: What to time, by name.
        rounds: How often each is timed.
        warm_up: How often each runs before.
    """
    times = {name: Times([], []) for name in runs}
    for index in range(-warm_up, rounds):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if index >= 0:
                times[name].cpu.append(1000 * (time.process_time() - cpu))
                times[name].wall.append(1000 * (time.perf_counter() - wall))
    return times


def machine(threads: int | str) -> dict[str, Any]:
    """Return the processor, its instruction sets and the versions of the libraries; no names of hosts or folders."""
    versions: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "instruction sets": _flags(),
        "fast bfloat16": has_fast_bfloat16(torch.device("cpu")),
        "threads": threads,
        **{name: os.environ.get(name, "") for name in _ISA_VARIABLES},
        "python": platform.python_version(),
        **versions,
    }


def restrict(isa: str | None) -> None:
    """Start this program again with all libraries that can be kept to an instruction set; they read it once."""
    if isa is not None:
        wanted = dict(zip(_ISA_VARIABLES, _ISA[isa], strict=True))
        if any(os.environ.get(name) != value for name, value in wanted.items()):
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def own_paths(dtype: torch.dtype) -> dict[str, str | None]:
    """Return the ways in which keyglue computes in a type on a CPU: name, and KEYGLUE_ISA for it (None: as it is)."""
    kind = str(dtype).removeprefix("torch.")
    paths: dict[str, str | None] = {f"keyglue {kind}": "off"}
    return paths if native.kernels(dtype) is None else {f"keyglue native {kind}": None, **paths}


def with_isa(isa: str | None, run: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``run`` with another KEYGLUE_ISA, which keyglue reads at every call; None leaves it as it is."""
    if isa is None:
        return run

    def limited() -> Any:
        before = os.environ.get("KEYGLUE_ISA")
        os.environ["KEYGLUE_ISA"] = isa
        try:
            return run()
        finally:
            os.environ.pop("KEYGLUE_ISA")
            if before is not None:
                os.environ["KEYGLUE_ISA"] = before

    return limited


def processor() -> str:
    """Return the processor's name."""
    return _of_cpuinfo("model name") or platform.processor() or platform.machine()


def _flags() -> str:
    known = set((_of_cpuinfo("flags") or _of_cpuinfo("Features")).split())
    return " ".join(flag for flag in _FLAGS if flag in known)


def _of_cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def photograph(name: str, size: tuple[int, int]) -> Tensor:
    """Return a bundled photograph as gray (1, h, w) from 0 to 1."""
    return to_grayscale(resize_image(read_image(ASSETS / name), size)) / 255


def detector(max_keypoints: int, dtype: str | None = None) -> SuperPointForKeypointDetection:
    """Return the bundled SuperPoint with keypoints on whole pixels, as all peers have them."""
    return SuperPointForKeypointDetection.from_pretrained(max_keypoints=max_keypoints, refinement_radius=0, dtype=dtype)


def published_size_model(max_keypoints: int, dtype: str | None = None, **settings: Any) -> LightGlueForKeypointMatching:
    """Return the bundled detector with a matcher of the published size (9 layers, 256 wide) and random weights.

    Descriptors pass the layers changed a little and are compared as they are, so that like matches like.
    """
    found = detector(max_keypoints, dtype)
    config = LightGlueConfig(keypoint_detector_config=found.config, **settings)
    model = LightGlueForKeypointMatching(config).eval()
    model.keypoint_detector = found
    generator = torch.Generator().manual_seed(0)
    width = config.descriptor_dim
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.startswith("keypoint_detector.") or "layer_norm" in name:
                continue
            if "final_projection.weight" in name:
                parameter.copy_(width**0.25 * 30**0.5 * torch.eye(width) + 0.1 * noise)
            elif "fc2" in name:
                parameter.copy_(0.001 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        for layer in model.transformer_layers:
            layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())
        for assignment in model.match_assignment_layers:
            assignment.matchability.bias.fill_(3)
    model.dtype_is_free = dtype is None
    return model


def arguments(description: str | None, rounds: int = 7) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=kind, conflict_handler="resolve")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--isa", choices=tuple(_ISA), help="keep all libraries that can be to this instruction set")
    parser.add_argument("--out", type=Path, help="where to write NAME.json and NAME.md, without the suffix")
    return parser


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def report(title: str, about: Mapping[str, Any], tables: Mapping[str, str], data: Any, out: Path | None) -> None:
    """Print tables and, if wanted, write them as Markdown and everything as JSON."""
    text = f"# {title}\n\n" + "".join(f"- {key}: {value}\n" for key, value in about.items() if value != "")
    text += "".join(f"\n## {heading}\n\n{content}" for heading, content in tables.items())
    sys.stdout.write(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".md").write_text(text, encoding="utf-8")
        values = json.dumps({"about": dict(about), "results": data}, indent=1)
        out.with_suffix(".json").write_text(values + "\n", encoding="utf-8")
