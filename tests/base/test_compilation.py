"""What ``compile=`` accepts, and what is said where it is not possible."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from keyglue import Matcher, match
from keyglue.base.compilation import MODES, resolve_compile
from keyglue.base.errors import InputError, MissingDependencyError
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching

CPU = torch.device("cpu")


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A file that is found as a compiler."""
    program = tmp_path / "c++"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))


@pytest.mark.usefixtures("compiler")
def test_values():
    assert resolve_compile(False, CPU) is None
    assert resolve_compile(None, CPU) is None
    assert resolve_compile(True, CPU) == "default"
    assert [resolve_compile(mode, CPU) for mode in MODES] == list(MODES)
    for mode in ("fast", "", "Default"):
        with pytest.raises(InputError, match="reduce-overhead"):
            resolve_compile(mode, CPU)


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"no-such-compiler.*CXX"):
        SuperPointForKeypointDetection.from_pretrained(compile=True)
    assert SuperPointForKeypointDetection.from_pretrained(compile=False).compile_mode is None
    if importlib.util.find_spec("triton") is None:
        with pytest.raises(MissingDependencyError, match="pip install triton"):
            resolve_compile("reduce-overhead", torch.device("cuda"))


@pytest.mark.usefixtures("compiler")
def test_all_parts_of_a_model_know_the_mode():
    model = LightGlueForKeypointMatching.from_pretrained(compile="max-autotune-no-cudagraphs")
    assert model.compile_mode == model.keypoint_detector.compile_mode == "max-autotune-no-cudagraphs"
    assert Matcher.from_pretrained(compile=True).model.compile_mode == "default"
    assert LightGlueForKeypointMatching.from_pretrained().compile_mode is None


def test_a_matcher_brings_its_own_mode(assets):
    with pytest.raises(InputError, match="compile"):
        match(assets / "coffee.png", assets / "coffee.png", model=Matcher.from_pretrained(), compile=True)
