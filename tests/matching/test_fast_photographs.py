"""Fast and reference path on photographs: the stereo pair, ten warps made from seeds, pairs of the evaluation sets.

Two decisions of the reference path are compared with the fast path's only where they do not hang on less than 1e-5 of
log probability or score: which entry of a row or column is best, and whether its score exceeds the threshold.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from agreement import MARGIN, reference, share_of_same_matches

from keyglue import LightGlueForKeypointMatching
from keyglue.images.read import read_image
from keyglue.images.resize import resize_image, to_grayscale
from keyglue.matching.lightglue.fast import FastPath, FastWeights, choose_path

NAMES = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left")


@pytest.fixture(scope="module")
def model():
    """The bundled model with nothing adaptive: all pairs run through all layers."""
    settings = {"dtype": "float32", "depth_confidence": -1, "width_confidence": -1}
    loaded = LightGlueForKeypointMatching.from_pretrained("keyglue-small", **settings)
    loaded.keypoint_detector.config = loaded.keypoint_detector.config.replace(max_keypoints=256)
    return loaded


@pytest.fixture(scope="module")
def pairs(model, photographs):
    """The stereo pair and ten photographs with a view of each."""
    images = [(photographs["motorcycle_left"], photographs["motorcycle_right"])]
    images += [(photographs[NAMES[seed % 5]], view(photographs[NAMES[seed % 5]], seed)) for seed in range(10)]
    return [(model.extract(first), model.extract(second)) for first, second in images]


def view(image: torch.Tensor, seed: int) -> torch.Tensor:
    """Return an image (1, h, w) as seen through a random homography near the identity."""
    generator = torch.Generator().manual_seed(seed)
    homography = torch.eye(3) + 0.15 * (2 * torch.rand(3, 3, generator=generator) - 1)
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, *image.shape], align_corners=False)[0]
    turned = F.pad(grid, (0, 1), value=1.0) @ homography.t()
    return F.grid_sample(image[None], (turned[..., :2] / turned[..., 2:])[None], align_corners=False)[0]


def decided(log_assignment: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return (M,) booleans: points of image 0 whose match does not hang on less than MARGIN."""
    inner = log_assignment[:-1, :-1]
    of_rows, best = inner.topk(2, dim=1)
    of_columns = inner.topk(2, dim=0).values
    clear_columns = of_columns[0] - of_columns[1] > MARGIN
    clear_score = (of_rows[:, 0].exp() - threshold).abs() > MARGIN
    return (of_rows[:, 0] - of_rows[:, 1] > MARGIN) & clear_columns[best[:, 0]] & clear_score


@torch.no_grad()
def check_float32(model, pair):
    """Check one pair and return its number of matches."""
    assert isinstance(choose_path(model, model._folded, None), FastPath)
    found, expected = model.match(*pair), reference(model, [pair])[0]
    clear = decided(model.log_assignments(*pair)[-1], model.config.filter_threshold)
    assert clear.float().mean() > 0.99
    assert torch.equal(found.matches0[clear], expected.matches0[clear])
    torch.testing.assert_close(found.matching_scores0[clear], expected.matching_scores0[clear], atol=1e-4, rtol=0)
    return len(found)


@pytest.mark.parametrize("isa", ["", "off"], ids=["kernels", "plain"])
@torch.no_grad()
def test_float32_gives_the_same_matches(isa, model, pairs, monkeypatch):
    monkeypatch.setenv("KEYGLUE_ISA", isa)
    counts = [check_float32(model, pair) for pair in pairs]
    assert min(counts) > 20
    assert sum(counts) > 1000


@torch.no_grad()
def test_adaptive_float32_gives_the_same_matches(model, pairs):
    adaptive = LightGlueForKeypointMatching.from_pretrained("keyglue-small", dtype="float32")
    for found, expected in zip(adaptive.match_pairs(pairs), reference(adaptive, pairs), strict=True):
        assert found.tokens_per_layer == expected.tokens_per_layer
        assert share_of_same_matches(found, expected) == 1


@torch.no_grad()
def test_bfloat16_gives_99_percent_of_the_matches(model, pairs):
    path = FastPath(FastWeights(model, torch.bfloat16), model.config.filter_threshold)
    found, expected = model._run(pairs, path), reference(model, pairs)
    shares = [share_of_same_matches(a, b) for a, b in zip(found, expected, strict=True)]
    total = sum(len(b) for b in expected)
    assert sum(share * len(b) for share, b in zip(shares, expected, strict=True)) / total >= 0.99
    for a, b in zip(found, expected, strict=True):
        assert float((a.matching_scores0 - b.matching_scores0).abs().mean()) < 0.01


@torch.no_grad()
def test_weights_in_bfloat16_take_the_fast_path(pairs):
    half = LightGlueForKeypointMatching.from_pretrained("keyglue-small", dtype="bfloat16")
    path = choose_path(half, half._folded, None)
    assert isinstance(path, FastPath)
    assert path.weights.dtype == torch.bfloat16
    full = LightGlueForKeypointMatching.from_pretrained("keyglue-small", dtype="float32")
    assert share_of_same_matches(half.match(*pairs[0]), full.match(*pairs[0])) > 0.95


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("oxford_affine/graf/img1.*", "oxford_affine/graf/img2.*"),
        ("oxford_affine/bark/img1.*", "oxford_affine/bark/img2.*"),
        ("oxford_affine/leuven/img1.*", "oxford_affine/leuven/img4.*"),
        ("homogr/adamA.*", "homogr/adamB.*"),
    ],
)
@torch.no_grad()
def test_evaluation_pairs(model, shared_data, first, second):
    files = [next(iter(sorted((shared_data / "eval").glob(name))), None) for name in (first, second)]
    if None in files:
        pytest.skip("these pictures are not here")
    pixels = [to_grayscale(read_image(file)) / 255 for file in files]
    sizes = [tuple(round(side * 400 / max(image.shape)) for side in image.shape[1:]) for image in pixels]
    pair = tuple(model.extract(resize_image(image, size)) for image, size in zip(pixels, sizes, strict=True))
    assert check_float32(model, pair) > 20
