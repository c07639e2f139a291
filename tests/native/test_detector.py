"""The compiled kernels of the detector give their plain twins' answers, with every instruction set that is here."""

from __future__ import annotations

import copy
import functools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue import SuperPointConfig, SuperPointForKeypointDetection
from keyglue.base import pretrained
from keyglue.base.native import kernels
from keyglue.images.read import read_image
from keyglue.images.resize import resize_image, to_grayscale
from keyglue.keypoints.nms import find_keypoints, select_keypoints, suppress_non_maxima
from keyglue.keypoints.refinement import _compiled_peaks, _peaks, det_hessian
from keyglue.keypoints.superpoint_fast import FastSuperPoint
from keyglue.keypoints.superpoint_native import NativeSuperPoint, largest_input

keyglue_native = pytest.importorskip("keyglue_native")
FLOAT32 = [name for name in ("avx512", "avx2") if name in keyglue_native.supported()]
if not FLOAT32:
    pytest.skip("no kernels run on this processor", allow_module_level=True)

SIZES = [(8, 8), (9, 17), (15, 23), (8, 700), (700, 9), (64, 64), (101, 77), (130, 255), (33, 1500)]
EMULATED = "amx-emulated"
isa = pytest.mark.parametrize("isa", FLOAT32)
emulated = pytest.mark.skipif(EMULATED not in keyglue_native.supported(), reason="emulating AMX takes AVX-512")


def random_detector(sizes=(8, 16, 24), hidden=20, length=12, seed=0, **values):
    """Return a detector of other widths than the published one, with random weights of lively size."""
    cell = 2 ** (len(sizes) - 1)
    shape = {"decoder_hidden_size": hidden, "keypoint_decoder_dim": cell**2 + 1, "descriptor_decoder_dim": length}
    model = SuperPointForKeypointDetection(SuperPointConfig(encoder_hidden_sizes=sizes, **shape, **values)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim == 4 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.4 * fan_in**-0.5)
    return model


def random_image(*size, seed=1):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def compiled(model, isa):
    return NativeSuperPoint(model, keyglue_native.kernels(isa))


def check_maps(model, gray, isa, points=40):
    """Scores, encoder and descriptors are those of the plain path."""
    own, plain = compiled(model, isa), FastSuperPoint(model, torch.float32)
    assert own.suits(gray)
    scores, cells = own.maps(gray)
    expected_scores, encoded = plain.maps(gray)
    corner = torch.tensor([gray.shape[3] - 1.0, gray.shape[2] - 1.0])
    keypoints = random_image(points, 2, seed=2) * corner
    for index in range(len(gray)):
        torch.testing.assert_close(scores[index], expected_scores[index], atol=2e-5, rtol=1e-4)
        values, width = cells[index]
        channels = encoded.shape[1]
        torch.testing.assert_close(
            values[:, 1 : width + 1, :channels].permute(2, 0, 1), encoded[index], atol=2e-5, rtol=1e-4
        )
        assert values.sum() == pytest.approx(float(values[:, 1 : width + 1, :channels].sum()), rel=1e-4)
        torch.testing.assert_close(
            own.describe(keypoints, cells[index]), plain.describe(keypoints, encoded[index]), atol=1e-4, rtol=0
        )


@isa
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_maps_of_any_size(size, isa):
    check_maps(random_detector(), random_image(2, 1, *size), isa)


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4),
    st.integers(1, 50),
    st.integers(1, 70),
    st.tuples(st.integers(8, 150), st.integers(8, 150)),
    st.integers(0, 300),
    st.sampled_from(FLOAT32),
)
@settings(max_examples=30, deadline=None)
@torch.inference_mode()
def test_maps_of_any_number_of_channels(sizes, hidden, length, size, points, isa):
    check_maps(random_detector(tuple(sizes), hidden, length), random_image(1, 1, *size), isa, points)


@torch.inference_mode()
def test_instruction_sets_agree():
    model, gray = random_detector((64, 64, 128, 128), 256, 256), random_image(1, 1, 120, 200)
    keypoints = random_image(300, 2, seed=2) * 119
    answers = []
    for name in FLOAT32:
        own = compiled(model, name)
        scores, cells = own.maps(gray)
        answers.append((scores[0], cells[0].values, own.describe(keypoints, cells[0])))
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0], atol=1e-6, rtol=1e-5)


@isa
@torch.inference_mode()
def test_errors_are_those_of_direct_convolution(isa, small, photographs):
    model = small.keypoint_detector
    exact = copy.deepcopy(model).double()
    own, plain = compiled(model, isa), FastSuperPoint(model, torch.float32)
    gray = photographs["rocket"][None]
    scores = exact.keypoint_decoder(exact.encoder(gray.double())[-1])
    # The decoder gives float32; its own rounding is far below what is measured.
    own_error, plain_error = ((maps[0] - scores[0]).abs().max() for maps in (own.maps(gray)[0], plain.maps(gray)[0]))
    assert own_error < 5e-6
    assert own_error < 2.5 * plain_error


@isa
@pytest.mark.parametrize("most", [0, 5, 1024])
@torch.inference_mode()
def test_photographs_give_the_reference_features(isa, most, small, photographs, monkeypatch):
    monkeypatch.setenv("KEYGLUE_ISA", isa)
    model = copy.deepcopy(small.keypoint_detector)
    model.dtype_is_free = False  # float32, on a processor with AMX too
    model.config = model.config.replace(max_keypoints=most)
    for name in ("motorcycle_left", "chelsea", "rocket"):
        image = photographs[name]
        own, reference = model.extract(image), model._extract(image[None], [tuple(image.shape[1:])], states=[])[0]
        assert len(own) == len(reference)
        torch.testing.assert_close(own.keypoint_scores, reference.keypoint_scores, atol=1e-5, rtol=0)
        if most:
            # Scores that are equal to 1e-6 may come in another order.
            exact = "donot_use_mm_for_euclid_dist"
            distance, same = torch.cdist(reference.keypoints, own.keypoints, compute_mode=exact).min(dim=1)
            assert distance.max() < 1e-3
            torch.testing.assert_close(own.descriptors[same], reference.descriptors, atol=1e-4, rtol=0)


@given(
    st.integers(0, 10_000),
    st.one_of(st.integers(0, 6), st.integers(7, 60)),
    st.tuples(st.integers(1, 40), st.integers(1, 70)),
    st.sampled_from(["random", "steps", "islands", "smooth"]),
    st.sampled_from([0, 0.1, 0.5]),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([-1, 0, 1, 3, 10, 50]),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from(FLOAT32),
)
@settings(max_examples=150, deadline=None)
def test_suppression_is_the_plain_one(seed, radius, size, kind, threshold, border, most, right_bottom, rounds, isa):
    scores = random_image(*size, seed=seed)
    if kind in ("steps", "islands"):
        scores = (scores * 6).round() / 6  # plateaus and ties
    if kind == "islands":
        scores = scores * (random_image(*size, seed=seed + 1) > 0.7)
    if kind == "smooth":
        scores = torch.nn.functional.avg_pool2d(scores[None], 3, 1, 1)[0]
    dense = suppress_non_maxima(scores[None], radius, rounds)[0]
    expected = select_keypoints(dense, threshold, border, most, border_right_bottom=right_bottom)
    found = finder(isa)(
        scores, radius, threshold, border, most, border_right_bottom=right_bottom, recovery_rounds=rounds
    )
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def check_bfloat16(model, gray, points=40):
    """What bfloat16 loses is no more than what the plain path in bfloat16 loses."""
    own, plain, exact = compiled(model, EMULATED), *(FastSuperPoint(model, t) for t in (torch.bfloat16, torch.float32))
    keypoints = random_image(points, 2, seed=2) * torch.tensor([gray.shape[3] - 1.0, gray.shape[2] - 1.0])
    scores, cells = own.maps(gray)
    (plain_scores, plain_encoded), (exact_scores, encoded) = plain.maps(gray), exact.maps(gray)
    values, width = cells[0]
    inside = values[:, 1 : width + 1, : encoded.shape[1]].permute(2, 0, 1)
    assert values.sum() == pytest.approx(float(inside.sum()), rel=1e-4)  # zeros around it
    pairs = [(scores[0], plain_scores[0], exact_scores[0]), (inside, plain_encoded[0].float(), encoded[0])]
    described = own.describe(keypoints, cells[0]), plain.describe(keypoints, plain_encoded[0])
    pairs.append((*described, exact.describe(keypoints, encoded[0])))
    for found, other, truth in pairs:
        assert found.dtype == torch.float32
        own_error, other_error = (found - truth).abs(), (other - truth).abs()
        assert own_error.max() <= 2 * other_error.max() + 1e-2 * truth.abs().max()
        assert own_error.mean() <= 1.5 * other_error.mean() + 1e-3 * truth.abs().max()


@emulated
@given(
    st.lists(st.integers(1, 70), min_size=2, max_size=4),
    st.integers(1, 50),
    st.integers(1, 70),
    st.tuples(st.integers(8, 150), st.integers(8, 150)),
)
@settings(max_examples=15, deadline=None)
@torch.inference_mode()
def test_maps_in_bfloat16(sizes, hidden, length, size):
    check_bfloat16(random_detector(tuple(sizes), hidden, length), random_image(1, 1, *size))


@emulated
@torch.inference_mode()
def test_bfloat16_finds_the_same_keypoints(small, photographs, monkeypatch):
    monkeypatch.setattr(pretrained, "has_fast_bfloat16", lambda device: True)
    model, exact = small.keypoint_detector, copy.deepcopy(small.keypoint_detector)
    exact.dtype_is_free = False
    calls = []
    maps = NativeSuperPoint.maps
    monkeypatch.setattr(NativeSuperPoint, "maps", lambda self, gray: calls.append(self) or maps(self, gray))
    near = total = 0
    for name in ("motorcycle_left", "astronaut", "coffee"):
        monkeypatch.setenv("KEYGLUE_ISA", EMULATED)
        found = model.extract(photographs[name])
        assert calls.pop()._kernels.name == EMULATED
        monkeypatch.setenv("KEYGLUE_ISA", "off")
        expected = exact.extract(photographs[name])
        near += int((torch.cdist(expected.keypoints, found.keypoints).min(dim=1).values <= 1).sum())
        total += len(expected)
    assert near >= 0.97 * total


@functools.cache
def finder(isa):
    return compiled(random_detector(), isa).find_keypoints


@isa
@pytest.mark.parametrize("most", [10, 300, -1])
@torch.inference_mode()
def test_suppression_on_photographs(isa, most, small, photographs):
    own = compiled(small.keypoint_detector, isa)
    for image in photographs.values():
        scores = own.maps(image[None])[0][0]
        for threshold in (0.0005, 0.02):
            found = own.find_keypoints(scores, 4, threshold, 4, most)
            expected = find_keypoints(scores, 4, threshold, 4, most)
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])


@isa
def test_scores_that_are_no_numbers_are_left_to_the_plain_suppression(isa):
    scores = random_image(20, 30)
    scores[7, 9] = math.nan
    for own, plain in zip(finder(isa)(scores, 3, 0.1, 0, -1), find_keypoints(scores, 3, 0.1, 0, -1), strict=True):
        assert torch.equal(own, plain)


@isa
@torch.inference_mode()
def test_threads_change_nothing(isa, monkeypatch):
    model, gray = random_detector((16, 32, 32)), random_image(1, 1, 230, 310)
    keypoints = random_image(300, 2, seed=2) * 229
    own = compiled(model, isa)
    answers = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        scores, cells = own.maps(gray)
        answers.append((scores[0], cells[0].values, own.describe(keypoints, cells[0])))
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


@isa
@torch.inference_mode()
def test_what_could_overflow_takes_the_plain_path(isa, monkeypatch):
    model, image = random_detector(max_keypoints=20), random_image(1, 40, 48)
    convolutions = [conv for block in model.encoder.conv_blocks for conv in (block.conv_a, block.conv_b)]
    limit = largest_input(convolutions)
    own = compiled(model, isa)
    assert own.suits(image[None])
    assert limit > 1e6
    # At the limit everything is finite, beyond it the plain path answers.
    scores, cells = own.maps(image[None] * own._limit)
    assert torch.isfinite(scores[0]).all()
    assert torch.isfinite(cells[0].values).all()
    assert not own.suits(image[None] * 1e38)
    for scale in (1e20, 1e38):
        monkeypatch.setenv("KEYGLUE_ISA", isa)
        found = model.extract(image * scale)
        monkeypatch.setenv("KEYGLUE_ISA", "off")
        expected = model.extract(image * scale)
        torch.testing.assert_close(found.keypoints, expected.keypoints, equal_nan=True)
        torch.testing.assert_close(found.descriptors, expected.descriptors, equal_nan=True, atol=1e-4, rtol=1e-4)
    for value in (math.nan, math.inf, 1e38):
        broken = copy.deepcopy(model)
        broken.encoder.conv_blocks[1].conv_a.weight.data[0, 0, 0, 0] = value
        assert not compiled(broken, isa).suits(image[None])


@isa
@torch.no_grad()
def test_a_model_follows_its_weights_and_the_environment(isa, monkeypatch):
    monkeypatch.setenv("KEYGLUE_ISA", isa)
    calls = []
    maps = NativeSuperPoint.maps
    monkeypatch.setattr(NativeSuperPoint, "maps", lambda self, gray: calls.append(self) or maps(self, gray))
    model, image = random_detector(max_keypoints=20), random_image(1, 48, 64)
    reference = lambda: model._extract(image[None], [tuple(image.shape[1:])], states=[])[0]  # noqa: E731
    for _ in range(2):
        found = model.extract(image)
        torch.testing.assert_close(found.descriptors, reference().descriptors, atol=1e-5, rtol=0)
    assert len(calls) == 2
    assert calls[0] is calls[1]
    model.encoder.conv_blocks[1].conv_b.weight.mul_(1.5)
    torch.testing.assert_close(model.extract(image).descriptors, reference().descriptors, atol=1e-5, rtol=0)
    assert calls[2] is not calls[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.extract(image).keypoints, model.extract(image).keypoints)
    turned = image.mT.contiguous().mT.requires_grad_(True)  # rows are not one behind the other
    torch.testing.assert_close(model.extract(turned).descriptors, model.extract(image).descriptors)
    before = len(calls)
    monkeypatch.setenv("KEYGLUE_ISA", "off")
    assert kernels(torch.float32) is None
    assert len(model.extract(image)) == 20
    model.extract(image[:, :7])  # smaller than a cell
    assert len(calls) == before


@isa
@torch.inference_mode()
def test_full_size_photograph_finds_the_same_keypoints(isa, small, assets):
    """Keypoints of the two paths differ only where scores are equal to 1e-5."""
    model = small.keypoint_detector
    gray = (to_grayscale(resize_image(read_image(assets / "motorcycle_left.png"), (480, 640))) / 255)[None]
    own, plain = compiled(model, isa), FastSuperPoint(model, torch.float32)
    values = [maps[0] for maps in (own.maps(gray)[0], plain.maps(gray)[0])]
    assert (values[0] - values[1]).abs().max() < 1e-5
    chosen = [{tuple(point) for point in find_keypoints(v, 4, 0.0005, 4, 1024)[0].tolist()} for v in values]
    for x, y in chosen[0] ^ chosen[1]:
        around = values[1][max(int(y) - 4, 0) : int(y) + 5, max(int(x) - 4, 0) : int(x) + 5].flatten().sort().values
        worst = find_keypoints(values[1], 4, 0.0005, 4, 1024)[1].min()
        score = values[1][int(y), int(x)]
        assert abs(score - worst) < 1e-5 or (around[1:] - around[:-1]).min() < 1e-5
    assert len(chosen[0] & chosen[1]) >= 1020


@isa
@given(
    size=st.tuples(st.integers(3, 40), st.integers(3, 60)),
    radius=st.integers(1, 9),
    sigma=st.floats(0.5, 4),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_keypoints_move_to_the_same_peaks(isa, size, radius, sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(size, generator=generator)
    points = (torch.rand(30, 2, generator=generator) * torch.tensor([size[1], size[0]])).floor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYGLUE_ISA", isa)
        places, pixels = _compiled_peaks(points, image, radius, sigma)
    right_places, right_pixels = _peaks(points, image, radius, sigma)
    values = det_hessian(image[None, None], sigma)[0].flatten()
    rounding = 1e-5 * values.abs().max()
    same = pixels == right_pixels
    curved = torch.ones(len(points), dtype=torch.bool)
    for index, (own, right) in enumerate(zip(pixels.tolist(), right_pixels.tolist(), strict=True)):
        best, other = (values[pixel] if pixel >= 0 else values.new_zeros(()) for pixel in (own, right))
        if own != right and own >= 0 and right >= 0:
            assert (best - other).abs() <= rounding, "two peaks of about one height"
        elif own != right:  # one of them sees a neighbour that is as high, or nothing above zero
            peak = max(own, right)
            around = [values[peak + step] for step in (-1, 1, *range(-size[1] - 1, -size[1] + 2))]
            around += [values[peak + step] for step in range(size[1] - 1, size[1] + 2)]
            assert values[peak] - max(around) <= rounding or values[peak] <= rounding
        elif own >= 0:
            bends = [2 * values[own] - values[own - step] - values[own + step] for step in (1, size[1])]
            curved[index] = min(bends) > 100 * rounding
    compared = same & curved & (pixels >= 0)
    torch.testing.assert_close(places[compared], right_places[compared], rtol=0, atol=0.02)


def test_keypoints_outside_the_image_are_refused():
    kernels = keyglue_native.kernels(FLOAT32[0])
    places, pixels, weights = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), torch.ones(3, 5)
    for point in ([-1.0, 0.0], [0.0, 4.0], [math.nan, 0.0]):
        with pytest.raises(ValueError, match="outside the image"):
            keyglue_native.peaks_near(
                kernels, torch.zeros(4, 8), torch.tensor([point]), 3, weights, 1.0, 1, places, pixels
            )
    with pytest.raises(ValueError, match="weights"):
        keyglue_native.peaks_near(
            kernels, torch.zeros(4, 8), torch.zeros(1, 2), 3, torch.ones(3, 4), 1.0, 1, places, pixels
        )
