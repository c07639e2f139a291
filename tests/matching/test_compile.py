"""torch.compile of the fast path: the same answers, compiled once for all sizes. Needs a C++ compiler."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from agreement import assert_agree, share_of_same_matches

from keyglue import LightGlueForKeypointMatching
from keyglue.base import compilation
from keyglue.base.compilation import call_by_rows
from keyglue.keypoints.superpoint_compiled import CompiledMaps
from keyglue.matching.lightglue.fast import FastPath, FastWeights, choose_path
from keyglue.matching.lightglue.fast_packed import PackedBlock

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler"),
]
# Points of image 0 and 1; one of them has a single one.
SIZES = [(300, 280), (64, 200), (1, 1), (1, 90), (128, 128), (257, 31), (200, 199), (5, 300), (150, 16), (90, 91)]


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """Compile here: a pool of processes would outlive the tests."""
    import torch._inductor.config as settings

    before, settings.compile_threads = settings.compile_threads, 1
    yield
    settings.compile_threads = before


@pytest.fixture(scope="module")
def models():
    """The bundled model, compiled and not."""
    load = LightGlueForKeypointMatching.from_pretrained
    return load("keyglue-small", dtype="float32", compile=True), load("keyglue-small", dtype="float32")


@pytest.fixture(scope="module")
def pairs(described):
    first, second = described["motorcycle_left"], described["motorcycle_right"]
    return [(first.select(torch.arange(m)), second.select(torch.arange(n))) for m, n in SIZES]


@torch.no_grad()
def test_ten_sizes_give_the_same_answers_from_code_that_is_compiled_once(models, pairs):
    model, plain = models
    path = choose_path(model, model._folded, None)
    assert isinstance(path, FastPath)
    blocks = [block for layer in path.weights.layers for block in layer]
    assert all(isinstance(block, PackedBlock) and block.mode == "default" for block in blocks)
    found = [model.match(*pairs[0])]
    with torch.compiler.set_stance("fail_on_recompile"):
        found += model.match_pairs(pairs[1:])
    for matches, expected in zip(found, plain.match_pairs(pairs), strict=True):
        assert_agree(matches, expected, model.config.filter_threshold, tolerance=2e-5)
        assert matches.tokens_per_layer == expected.tokens_per_layer
    assert len(found[0]) > 100


def test_modes_are_those_of_torch():
    assert set(compilation.MODES) <= {*torch._inductor.list_mode_options(), "default"}


@torch.no_grad()
def test_bfloat16(models, pairs):
    model, plain = models
    path = FastPath(FastWeights(model, torch.bfloat16), model.config.filter_threshold)
    found, expected = model._run(pairs[:1], path)[0], plain.match(*pairs[0])
    assert share_of_same_matches(found, expected) > 0.97


@torch.no_grad()
def test_rows_that_are_added_for_graphs_change_nothing(models, pairs, monkeypatch):
    """What CUDA graphs of fixed size need, here without them."""
    seen = []

    def function(x, y, factor):
        seen.append((x.shape, y.shape))
        return (x + y[:, 0]) * factor

    monkeypatch.setattr(compilation, "compiled", lambda function, mode: function)
    monkeypatch.setattr(compilation, "_is_recorded", lambda mode, device: True)
    x, y = torch.rand(300, 4), torch.rand(300, 2, 4)
    assert torch.equal(call_by_rows(function, "reduce-overhead", [x, y], [3]), (x + y[:, 0]) * 3)
    assert seen == [((512, 4), (512, 2, 4))]
    model, plain = models
    with torch.compiler.set_stance("force_eager"):
        assert_agree(model.match(*pairs[0]), plain.match(*pairs[0]), 0.1, tolerance=2e-5)


@torch.no_grad()
def test_dense_part_of_the_detector(models, photographs):
    model = models[1].keypoint_detector
    maps = CompiledMaps(model, torch.float32, "default")
    for name in ("motorcycle_left", "astronaut", "chelsea"):
        image = photographs[name][None]
        stages = model.encoder(image)
        scores, encoded = maps(image)
        torch.testing.assert_close(scores, model.keypoint_decoder(stages[-1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(encoded, stages[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@torch.no_grad()
def test_on_cuda(mode, models, pairs, photographs):
    plain = models[1]
    model = LightGlueForKeypointMatching.from_pretrained("keyglue-small", dtype="float32", device="cuda", compile=mode)
    for _ in range(3):
        for found, expected in zip(model.match_pairs(pairs), plain.match_pairs(pairs), strict=True):
            assert share_of_same_matches(found, expected) > 0.98
    for name in ("motorcycle_left", "astronaut"):
        found = model.extract(photographs[name].cuda()).to("cpu")
        distances = torch.cdist(plain.extract(photographs[name]).keypoints, found.keypoints)
        assert (distances.amin(dim=1) < 1).float().mean() > 0.97
    assert F.cosine_similarity(found.descriptors[:1], found.descriptors[:1]).item() > 0.99
