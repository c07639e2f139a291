"""ONNX Runtime and OpenVINO behind one call: tensors in, tensors out."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from keyglue.base.devices import has_fast_bfloat16

Runtime = Callable[..., tuple[Tensor, ...]]


def runtimes(path: Path, threads: int) -> dict[str, Runtime]:
    """Return an ONNX file in each runtime that is installed, by name."""
    found: dict[str, Runtime] = {}
    if importlib.util.find_spec("onnxruntime") is not None:
        found["ONNX Runtime float32"] = _onnxruntime(path, threads)
    if importlib.util.find_spec("openvino") is not None:
        found["OpenVINO float32"] = _openvino(path, threads, "f32")
        if has_fast_bfloat16(torch.device("cpu")):
            found["OpenVINO bfloat16"] = _openvino(path, threads, "bf16")
    return found


def _onnxruntime(path: Path, threads: int) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
        return tuple(torch.from_numpy(value) for value in outputs)

    return run


def _openvino(path: Path, threads: int, precision: str) -> Runtime:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    model = openvino.Core().compile_model(str(path), "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
    request = model.create_infer_request()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = request.infer([value.numpy() for value in inputs], share_inputs=True)
        return tuple(torch.from_numpy(found[output]) for output in model.outputs)

    return run
