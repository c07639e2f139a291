"""SuperPoint's fast path gives the reference path's answers, and steps aside where it can't."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyglue import LightGlueForKeypointMatching, SuperPointConfig, SuperPointForKeypointDetection
from keyglue.base import pretrained
from keyglue.keypoints import convolution, superpoint_fast
from keyglue.keypoints.nms import find_keypoints, select_keypoints, suppress_non_maxima
from keyglue.keypoints.sampling import bilinear_corners, sample_descriptors
from keyglue.keypoints.superpoint_fast import FastSuperPoint

SIZES = [(8, 8), (9, 17), (15, 23), (8, 700), (700, 9), (64, 64), (101, 77), (130, 255), (33, 1500)]


def random_detector(sizes=(8, 16, 24), seed=0, **values):
    """Return a small detector of other widths than the published one, with random weights of lively size."""
    cell = 2 ** (len(sizes) - 1)
    shape = {"decoder_hidden_size": 20, "keypoint_decoder_dim": cell**2 + 1, "descriptor_decoder_dim": 12}
    model = SuperPointForKeypointDetection(SuperPointConfig(encoder_hidden_sizes=sizes, **shape, **values)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim == 4 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.4 * fan_in**-0.5)
    return model


def reference_maps(model, gray):
    """Return scores and unit-length descriptors of the reference path."""
    encoded = model.encoder(gray)[-1]
    return model.keypoint_decoder(encoded), model.descriptor_decoder(encoded)


def reference_extract(model, image):
    """Return Features by way of the reference path, which keeps hidden states."""
    return model._extract(image[None], [tuple(image.shape[1:])], states=[])[0]


@pytest.fixture(scope="module", autouse=True)
def without_kernels():
    """The plain fast path, also where compiled kernels are installed; tests/native tests these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYGLUE_ISA", "off")
        yield


@pytest.fixture(scope="module")
def detector():
    """The bundled detector in float32, whatever the processor."""
    return SuperPointForKeypointDetection.from_pretrained("keyglue-small", dtype="float32")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strip_bytes", [1, 5000, 100_000, 2**40])
@torch.inference_mode()
def test_strips_of_any_height_give_the_same_maps(size, strip_bytes, monkeypatch):
    model = random_detector()
    monkeypatch.setattr(superpoint_fast, "_STRIP_BYTES", strip_bytes)
    gray = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
    scores, encoded = FastSuperPoint(model, torch.float32).maps(gray)
    torch.testing.assert_close(scores, reference_maps(model, gray)[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(encoded, model.encoder(gray)[-1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(8, 8), (6, 10, 14, 18), (4, 8, 8, 8, 8)])
@torch.inference_mode()
def test_other_numbers_of_stages(sizes):
    model = random_detector(sizes)
    gray = torch.rand(1, 1, 75, 91, generator=torch.Generator().manual_seed(1))
    scores, _ = FastSuperPoint(model, torch.float32).maps(gray)
    torch.testing.assert_close(scores, reference_maps(model, gray)[0], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_without_packed_weights_the_maps_are_the_same(monkeypatch):
    monkeypatch.setattr(superpoint_fast, "_STRIP_BYTES", 20_000)
    model = random_detector()
    gray = torch.rand(1, 1, 66, 101, generator=torch.Generator().manual_seed(1))
    packed = FastSuperPoint(model, torch.float32)
    assert packed._score_hidden._packed == convolution.can_pack(gray.device, torch.float32)
    monkeypatch.setattr(convolution, "can_pack", lambda device, dtype: False)
    plain = FastSuperPoint(model, torch.float32)
    assert not plain._score_hidden._packed
    for own, other in zip(plain.maps(gray), packed.maps(gray), strict=True):
        torch.testing.assert_close(own, other, atol=2e-5, rtol=1e-4)
    # What devices other than the CPU run: whole images, several at once.
    torch.testing.assert_close(plain._encode(gray), packed.maps(gray)[1], atol=2e-5, rtol=1e-4)


@given(
    st.integers(0, 10_000),
    st.integers(0, 6),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["random", "steps", "islands", "smooth"]),
    st.sampled_from([0, 0.1, 0.5]),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([-1, 0, 1, 3, 10, 50]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_sparse_suppression_is_the_dense_one(seed, radius, size, kind, threshold, border, most, right_bottom):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(*size, generator=generator)
    if kind in ("steps", "islands"):
        scores = (scores * 6).round() / 6  # plateaus and ties
    if kind == "islands":
        scores = scores * (torch.rand(*size, generator=generator) > 0.7)
    if kind == "smooth":
        scores = torch.nn.functional.avg_pool2d(scores[None], 3, 1, 1)[0]
    dense = suppress_non_maxima(scores[None], radius)[0]
    expected = select_keypoints(dense, threshold, border, most, border_right_bottom=right_bottom)
    found = find_keypoints(scores, radius, threshold, border, most, border_right_bottom=right_bottom)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("most", [10, 300, 2000, -1])
@torch.inference_mode()
def test_sparse_suppression_on_photographs(detector, photographs, most):
    for image in photographs.values():
        scores = detector.keypoint_decoder(detector.encoder(image[None])[-1])
        for threshold in (0.0005, 0.02):
            dense = select_keypoints(suppress_non_maxima(scores, 4)[0], threshold, 4, most)
            sparse = find_keypoints(scores[0], 4, threshold, 4, most)
            assert torch.equal(dense[0], sparse[0])
            assert torch.equal(dense[1], sparse[1])


@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 20), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_corners_and_weights_are_those_of_the_sampling(seed, height, width, count):
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.nn.functional.normalize(torch.randn(6, height, width, generator=generator), dim=0)
    points = torch.rand(count, 2, generator=generator) * torch.tensor([8.0 * width - 1, 8.0 * height - 1])
    corners, weights = bilinear_corners(points, (height, width), 8)
    sampled = (descriptors.flatten(1).T[corners] * weights[..., None]).sum(dim=1)
    own = torch.nn.functional.normalize(sampled, dim=1)
    torch.testing.assert_close(own, sample_descriptors(points, descriptors, 8), atol=1e-4, rtol=0)


@pytest.mark.parametrize("most", [0, 5, 1024])
@torch.inference_mode()
def test_photographs_give_the_same_features(detector, photographs, most):
    """Few keypoints and many: descriptors of some cells, and of all."""
    model = copy.deepcopy(detector)
    model.config = model.config.replace(max_keypoints=most)
    for image in photographs.values():
        fast, slow = model.extract(image), reference_extract(model, image)
        assert len(fast) == len(slow)
        torch.testing.assert_close(fast.keypoint_scores, slow.keypoint_scores, atol=1e-5, rtol=0)
        if most:
            # Scores that are equal to 1e-6 may come in another order.
            exact = "donot_use_mm_for_euclid_dist"
            distance, same = torch.cdist(slow.keypoints, fast.keypoints, compute_mode=exact).min(dim=1)
            assert distance.max() < 1e-3
            torch.testing.assert_close(fast.descriptors[same], slow.descriptors, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_bfloat16_finds_the_same_keypoints(detector, photographs):
    """In emulation where the processor has no bfloat16: slow, but with its rounding."""
    near = total = 0
    similarity = []
    for name in ("motorcycle_left", "astronaut", "coffee"):
        image = photographs[name]
        exact = detector.extract(image)
        scores, encoded = FastSuperPoint(detector, torch.bfloat16).maps(image[None])
        config = detector.config
        points, _ = find_keypoints(scores[0], config.nms_radius, config.keypoint_threshold, 4, config.max_keypoints)
        whole = find_keypoints(
            detector.keypoint_decoder(detector.encoder(image[None])[-1])[0],
            config.nms_radius,
            config.keypoint_threshold,
            4,
            config.max_keypoints,
        )[0]
        near += int((torch.cdist(whole, points).min(dim=1).values <= 1).sum())
        total += len(whole)
        descriptors = FastSuperPoint(detector, torch.bfloat16).describe(exact.keypoints, encoded[0])
        assert descriptors.dtype == scores.dtype == torch.float32
        similarity.append((descriptors * exact.descriptors).sum(dim=1))
    assert near >= 0.97 * total
    assert torch.cat(similarity).min() > 0.99


def test_inference_dtype_is_free_only_if_nobody_asked(monkeypatch):
    monkeypatch.setattr(pretrained, "has_fast_bfloat16", lambda device: True)
    free = LightGlueForKeypointMatching.from_pretrained("keyglue-small")
    same = LightGlueForKeypointMatching.from_pretrained("keyglue-small", hf_compatible=True)
    assert same.inference_dtype == same.keypoint_detector.inference_dtype == torch.float32
    assert free.inference_dtype == free.keypoint_detector.inference_dtype == torch.bfloat16
    asked = LightGlueForKeypointMatching.from_pretrained("keyglue-small", dtype="float32")
    assert free.dtype_is_free
    assert free.keypoint_detector.dtype_is_free
    assert not asked.dtype_is_free
    assert not asked.keypoint_detector.dtype_is_free
    assert asked.inference_dtype == torch.float32
    assert free.to(torch.float16).inference_dtype == torch.float16
    assert random_detector().inference_dtype == torch.float32


class Watched:
    """Counts how often the reference path's encoder runs."""

    def __init__(self, model, monkeypatch):
        self.runs = 0
        encode = type(model.encoder).forward

        def forward(encoder, x):
            self.runs += 1
            return encode(encoder, x)

        monkeypatch.setattr(type(model.encoder), "forward", forward)


def test_what_only_the_reference_path_does_goes_there(monkeypatch):
    model = random_detector(max_keypoints=20)
    watched = Watched(model, monkeypatch)
    image = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))

    def reference_ran():
        before = watched.runs
        found = model.extract(image)
        return watched.runs > before, found

    assert reference_ran()[0], "gradients"
    assert reference_ran()[1].descriptors.requires_grad
    with torch.no_grad():
        assert not reference_ran()[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert reference_ran()[0], "autocast"
        model(image[None], output_hidden_states=True)
        model.train()
        assert reference_ran()[0], "training"
        model.eval()
        seen = []
        handle = model.encoder.conv_blocks[0].conv_a.register_forward_hook(lambda *_: seen.append(1))
        assert reference_ran()[0], "hooks"
        assert seen
        handle.remove()
        model.double()
        assert reference_ran()[0], "float64"
        model.float()
        assert not reference_ran()[0]
    with torch.inference_mode():
        assert not reference_ran()[0]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert not reference_ran()[0], "nothing wants a gradient"
    wants = image.clone().requires_grad_(True)
    assert model.extract(wants).descriptors.requires_grad


@torch.no_grad()
def test_changed_weights_are_seen():
    model, other = random_detector(max_keypoints=20), random_detector(seed=1, max_keypoints=20)
    image = torch.rand(1, 48, 64, generator=torch.Generator().manual_seed(0))

    def check():
        descriptors = model.extract(image).descriptors
        torch.testing.assert_close(descriptors, reference_extract(model, image).descriptors, atol=1e-5, rtol=0)
        return descriptors

    before = check()
    model.load_state_dict(other.state_dict())
    assert not torch.equal(before, check())
    model.encoder.conv_blocks[0].conv_a.weight.mul_(1.5)
    check()
    model.encoder.conv_blocks[1].conv_b.bias.data.add_(0.1)  # counts no version
    check()
    model.descriptor_decoder.conv_descriptor_b = copy.deepcopy(other.descriptor_decoder.conv_descriptor_b)
    model.descriptor_decoder.conv_descriptor_b.weight.neg_()
    check()
    kept = model._fast.get(model.parameters(), lambda: None, torch.float32)
    assert model._fast.get(model.parameters(), lambda: None, torch.float32) is kept


@torch.inference_mode()
def test_used_models_can_be_copied_pickled_and_saved(tmp_path):
    model = random_detector(max_keypoints=20)
    image = torch.rand(1, 48, 64, generator=torch.Generator().manual_seed(0))
    found = model.extract(image)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again):
        assert torch.equal(other.extract(image).keypoints, found.keypoints)


def test_weights_made_in_inference_mode_are_no_problem():
    with torch.inference_mode():
        model = random_detector(max_keypoints=20)
    image = torch.rand(1, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert len(model.extract(image)) == 20
