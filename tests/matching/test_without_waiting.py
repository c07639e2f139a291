"""The loop over layers on a GPU waits for one transfer a layer and for nothing else.

Tensors on the meta device have no values, as those of a GPU have none for the CPU until it waits: whatever asks for
one (``item``, ``nonzero``, ``bool``, a copy back) raises. Only the flags that say which pairs stop and which points
stay are handed out here, as the transfer would.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parent))
from agreement import assert_agree, share_of_same_matches
from random_models import lively_model

from keyglue.base.devices import to_device
from keyglue.matching.lightglue.fast import FastPath, FastWeights
from keyglue.matching.lightglue.lightglue import LightGlueMatcher

META = torch.device("meta")


class Watch(TorchFunctionMode):
    """Hands out flags, and notes what else goes from one device to the other, and what attention is given."""

    def __init__(self, flags):
        super().__init__()
        self.flags, self.inside = flags, False
        self.transfers, self.uploads, self.attention = 0, [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if self.inside and name == "cpu" and args[0].device == META:
            self.transfers += 1
            return self.flags(self.transfers, args[0])
        found = function(*args, **kwargs)
        if self.inside and isinstance(found, torch.Tensor) and found.device == META:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            if name in ("tensor", "as_tensor", "asarray") or any(value.device != META for value in given):
                self.uploads.append(name)
            if name == "scaled_dot_product_attention":
                self.attention.append((*args, kwargs["attn_mask"]))
        return found


class Watched(FastPath):
    """The path of a GPU, with all weights on the meta device."""

    def __init__(self, weights, watch):
        super().__init__(weights, 0.1)
        self.together, self.watch, self.layers = True, watch, 0

    def layer(self, index, tokens):
        self.watch.inside = True
        self.layers += 1
        return super().layer(index, tokens)


def without_values(weights):
    """Move folded weights to the meta device."""

    def moved(value):
        if isinstance(value, torch.Tensor):
            return value.to(META)
        return type(value)(moved(entry) for entry in value) if isinstance(value, tuple) else value

    for layer in weights.layers:
        for block in layer:
            for name, value in vars(block).items():
                setattr(block, name, moved(value))
    for name in ("confidence", "matchability", "projection"):
        setattr(weights, name, [moved(value) for value in getattr(weights, name)])
    return weights


def run(pairs, flags, **settings):
    """Run pairs without values through the path of a GPU."""
    model = lively_model(descriptor_dim=64, num_hidden_layers=5, **settings)
    weights = without_values(FastWeights(model, torch.bfloat16))
    LightGlueMatcher.to(model, META)
    watch = Watch(flags)
    path = Watched(weights, watch)
    with torch.no_grad(), watch:
        found = model._run([(a.to("cpu"), b.to("cpu")) for a, b in pairs], path)
    assert all(matches.matches0.device == META for matches in found)
    return watch, path, found


@pytest.fixture(scope="module")
def pairs(described):
    first, second = described["motorcycle_left"], described["motorcycle_right"]
    return [(first.select(torch.arange(m)), second.select(torch.arange(n))) for m, n in ((256, 256), (256, 256))]


def nothing_stops(_, flags):
    return torch.stack([torch.ones(flags.shape[1], dtype=torch.bool)] * len(flags))


def points_and_a_pair_go(layer, flags):
    """Drop every third point after each layer; the last pair stops after the third."""
    unconfident = torch.ones(flags.shape[1], dtype=torch.bool)
    if layer == 3:
        unconfident[flags.shape[1] // 2 :] = False
    return torch.stack([unconfident, torch.arange(flags.shape[1]) % 3 > 0])


def test_one_transfer_a_layer_and_no_upload_while_nothing_changes(pairs):
    watch, path, found = run(pairs, nothing_stops)
    assert path.layers == 5
    assert watch.transfers == 4, "nothing is asked after the last layer"
    assert watch.uploads == []
    assert [matches.stop_layer for matches in found] == [5, 5]


def test_attention_is_given_what_the_quickest_kernel_takes(pairs):
    watch, _, _ = run(pairs, nothing_stops)
    assert len(watch.attention) == 10, "one call a block for all images"
    for query, key, value, mask in watch.attention:
        assert mask is None
        assert query.shape == key.shape == value.shape == (4, 4, 256, 16)
        assert {part.dtype for part in (query, key, value)} == {torch.bfloat16}
        assert {part.stride(-1) for part in (query, key, value)} == {1}


def test_uploads_only_say_what_is_left(pairs):
    watch, path, found = run(pairs, points_and_a_pair_go)
    assert (path.layers, watch.transfers) == (5, 4)
    assert set(watch.uploads) == {"to"}, "nothing is made on the device from a list"
    # What stays; and which places of the padded images are tokens, for self and cross attention.
    assert len(watch.uploads) <= 4 * (1 + 2 * 4)
    assert [matches.stop_layer for matches in found] == [5, 3]
    assert found[1].tokens_per_layer == (512, 341, 227)


def test_no_transfer_where_nothing_is_adaptive(pairs):
    watch, path, _ = run(pairs, nothing_stops, depth_confidence=-1, width_confidence=-1)
    assert (path.layers, watch.transfers, watch.uploads) == (5, 0, [])


def test_a_wait_that_somebody_adds_is_found(pairs):
    """The test itself: what would make a GPU wait raises, or is noted."""
    watch = Watch(nothing_stops)
    watch.inside = True
    with watch:
        x = torch.zeros(4, device=META)
        for wait in (x.sum().item, x.sum().__bool__, x.nonzero, x.tolist, x.unique):
            with pytest.raises((RuntimeError, NotImplementedError)):
                wait()
        torch.tensor([1, 2], device=META)
        torch.zeros(2).to(META)
    assert watch.uploads == ["tensor", "to"]


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@torch.no_grad()
def test_answers_of_cuda_are_those_of_the_cpu(dtype, small, described):
    from keyglue import LightGlueForKeypointMatching

    model = LightGlueForKeypointMatching.from_pretrained("keyglue-small", dtype=dtype, device="cuda")
    d = described
    ragged = [(d["motorcycle_left"], d["motorcycle_right"]), (d["astronaut"], d["coffee"]), (d["coffee"], d["coffee"])]
    ragged.append((d["rocket"].select(torch.arange(0)), d["rocket"]))
    there = [(a.to("cuda"), b.to("cuda")) for a, b in ragged]
    for found, expected in zip(model.match_pairs(there), small.match_pairs(ragged), strict=True):
        assert found.matches0.is_cuda
        on_cpu = type(found)(**{name: _on_cpu(value) for name, value in vars(found).items()})
        if dtype == "float32":
            assert_agree(on_cpu, expected, model.config.filter_threshold, tolerance=1e-3)
        elif len(expected):
            assert share_of_same_matches(on_cpu, expected) > 0.95


@pytest.mark.gpu
@cuda
@torch.no_grad()
def test_detector_on_cuda(small, photographs):
    from keyglue import SuperPointForKeypointDetection

    model = SuperPointForKeypointDetection.from_pretrained("keyglue-small", dtype="float32", device="cuda")
    for image in photographs.values():
        found, expected = model.extract(image.cuda()).to("cpu"), small.keypoint_detector.extract(image)
        distance, nearest = torch.cdist(expected.keypoints, found.keypoints).min(dim=1)
        assert (distance < 0.5).float().mean() > 0.98
        near = distance < 0.1
        same = F.cosine_similarity(found.descriptors[nearest][near], expected.descriptors[near])
        assert same.min() > 0.99


@pytest.mark.gpu
@cuda
def test_copies_to_cuda_do_not_wait():
    source = torch.rand(1000)
    assert torch.equal(to_device(source, torch.device("cuda")).cpu(), source)


def _on_cpu(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value
