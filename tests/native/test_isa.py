"""Which kernels are chosen: the best that this processor has, unless KEYGLUE_ISA says otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from keyglue import InputError
from keyglue.base import native

keyglue_native = pytest.importorskip("keyglue_native")
SUPPORTED = keyglue_native.supported()
FLAGS = Path("/proc/cpuinfo").read_text(encoding="utf-8").split() if Path("/proc/cpuinfo").exists() else []


def name_of(kernels):
    return None if kernels is None else kernels.name


def test_supported_is_what_the_processor_has():
    assert list(keyglue_native.supported()) == [
        name for name in ("amx", "avx512", "avx2", "amx-emulated") if name in SUPPORTED
    ]
    if not FLAGS:
        pytest.skip("no /proc/cpuinfo here")
    assert ("avx2" in SUPPORTED) == ("avx2" in FLAGS and "fma" in FLAGS)
    assert ("avx512" in SUPPORTED) == {"avx512f", "avx512bw", "avx512dq", "avx512vl"}.issubset(FLAGS)
    assert ("amx" in SUPPORTED) <= ("amx_bf16" in FLAGS)


@pytest.mark.parametrize("name", ["avx2", "avx512", "amx", "amx-emulated", "sse"])
def test_kernels_by_name(name):
    if name in SUPPORTED:
        found = keyglue_native.kernels(name)
        assert (found.name, found.bfloat16) == (name, name.startswith("amx"))
    else:
        with pytest.raises(ValueError, match=name):
            keyglue_native.kernels(name)


def test_the_environment_is_looked_at_in_every_call(monkeypatch):
    if "avx2" not in SUPPORTED:
        pytest.skip("this processor runs no kernels")
    monkeypatch.delenv("KEYGLUE_ISA", raising=False)
    best = next(name for name in SUPPORTED if not name.startswith("amx"))
    assert name_of(native.kernels(torch.float32)) == best
    assert name_of(native.kernels(torch.bfloat16)) == ("amx" if "amx" in SUPPORTED else None)
    assert native.kernels(torch.float64) is None
    monkeypatch.setenv("KEYGLUE_ISA", "avx2")
    assert name_of(native.kernels(torch.float32)) == "avx2"
    assert native.kernels(torch.bfloat16) is None
    monkeypatch.setenv("KEYGLUE_ISA", "off")
    assert native.kernels(torch.float32) is None
    monkeypatch.setenv("KEYGLUE_ISA", "amx-emulated")
    assert name_of(native.kernels(torch.float32)) == best
    assert name_of(native.kernels(torch.bfloat16)) == ("amx-emulated" if "amx-emulated" in SUPPORTED else None)
    monkeypatch.setenv("KEYGLUE_ISA", "neon")
    with pytest.raises(InputError, match=r"KEYGLUE_ISA is 'neon'.*'avx512'"):
        native.kernels(torch.float32)


def test_without_the_package_there_are_none(monkeypatch):
    native._quickest.cache_clear()
    try:
        monkeypatch.setitem(sys.modules, "keyglue_native", None)
        monkeypatch.delenv("KEYGLUE_ISA", raising=False)
        assert native.kernels(torch.float32) is None
    finally:
        native._quickest.cache_clear()


FORK = """
import os, numpy, keyglue_native
kernels = keyglue_native.kernels("avx2")
generator = numpy.random.default_rng(0)
weight = generator.standard_normal((16, 16)).astype("float32")
layer = keyglue_native.Assignment(kernels, weight, weight[0])

def matches(threads):
    x0, x1 = (numpy.random.default_rng(seed).standard_normal((700, 16)).astype("float32") for seed in (1, 2))
    zeros, best = numpy.zeros(700, "float32"), numpy.zeros(700, "float32")
    index0, index1 = numpy.zeros(700, "int64"), numpy.zeros(700, "int64")
    assert layer.assign(x0, x1, zeros, zeros, best, index0, index1, keyglue_native.Workspace(), threads)
    return index0.tolist(), index1.tolist()

expected = matches(1)
assert matches(2) == expected
child = os.fork()
if child == 0:
    os._exit(0 if matches(2) == expected and matches(3) == expected else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert matches(4) == expected
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_threads_and_forked_processes():
    """A child has none of its parent's threads and starts its own."""
    if "avx2" not in SUPPORTED:
        pytest.skip("this processor runs no kernels")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
