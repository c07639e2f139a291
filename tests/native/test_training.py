"""The compiled convolutions of training give the plain ones' values and gradients, with every instruction set."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from keyglue.keypoints.superpoint import SuperPointConfig, SuperPointForKeypointDetection
from keyglue.training.convolutions import convolve, kernels_for
from keyglue.training.superpoint import SuperPointNetwork

keyglue_native = pytest.importorskip("keyglue_native")
FLOAT32 = [name for name in ("avx512", "avx2") if name in keyglue_native.supported()]
if not FLOAT32:
    pytest.skip("no kernels run on this processor", allow_module_level=True)

# Of the largest value; direct float32 convolutions come to 6e-7.
TOLERANCE = 5e-6
isa = pytest.mark.parametrize("isa", FLOAT32)


def plain(x: Tensor, conv: nn.Conv2d, pool: bool) -> Tensor:
    y = conv(x).relu()
    return nn.functional.max_pool2d(y, 2) if pool else y


def values_and_gradients(function, x, conv, gradient):
    x = x.detach().requires_grad_()
    y = function(x, conv)
    return y.detach(), *torch.autograd.grad(y, [x, conv.weight, conv.bias], gradient.to(y.dtype))


def gradient_of_clear_cases(y: Tensor, pool: bool) -> Tensor:
    """Return a gradient that is zero where rounding decides what ReLU or the maximum lets through.

    y is the convolution's exact value.
    """
    clear = y.abs() > 1e-4
    if pool:
        windows = y[..., : y.shape[2] // 2 * 2, : y.shape[3] // 2 * 2].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        best = windows.movedim(3, 4).flatten(4).topk(2, dim=4).values
        clear = (best[..., 0].abs() > 1e-4) & (best[..., 0] - best[..., 1] > 1e-4)
    return torch.randn(clear.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * clear


def check(isa, count, channels, size, pool, threads=1):
    generator = torch.Generator().manual_seed(sum(size) + channels[0])
    conv = nn.Conv2d(*channels, 3, padding=1)
    exact = nn.Conv2d(*channels, 3, padding=1).double()
    exact.load_state_dict(conv.state_dict())
    x = torch.randn(count, channels[0], *size, generator=generator)
    gradient = gradient_of_clear_cases(exact(x.double()), pool)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernels = keyglue_native.kernels(isa)
        found = values_and_gradients(lambda x, conv: convolve(x, conv, kernels, pool=pool), x, conv, gradient)
    finally:
        torch.set_num_threads(before)
    expected = values_and_gradients(lambda x, conv: plain(x, conv, pool), x.double(), exact, gradient)
    for own, right in zip(found, expected, strict=True):
        assert own.shape == right.shape
        assert (own - right).abs().max() <= TOLERANCE * right.abs().max()


@isa
@given(
    count=st.integers(1, 3),
    channels=st.tuples(st.sampled_from([16, 32, 48, 64]), st.sampled_from([16, 32, 48, 80])),
    size=st.tuples(st.integers(2, 19), st.integers(2, 37)),
    pool=st.booleans(),
    threads=st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_any_shape(isa, count, channels, size, pool, threads):
    check(isa, count, channels, size, pool, threads)


@isa
def test_more_tiles_than_one_block(isa):
    check(isa, 2, (64, 64), (40, 72), True)
    check(isa, 1, (128, 256), (24, 32), False)


@isa
def test_of_equal_values_the_first_gets_the_gradient_of_the_maximum(isa):
    conv = nn.Conv2d(16, 16, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.ones_(conv.bias)
    x = torch.randn(1, 16, 8, 8)
    gradient = torch.rand(1, 16, 4, 4)
    kernels = keyglue_native.kernels(isa)
    found = values_and_gradients(lambda x, conv: convolve(x, conv, kernels, pool=True), x, conv, gradient)
    expected = values_and_gradients(lambda x, conv: plain(x, conv, True), x, conv, gradient)
    for own, right in zip(found, expected, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-5, atol=1e-5)


def distance_from_decisions(network: SuperPointNetwork, image: Tensor) -> float:
    """How near a value is to where a ReLU or a maximum decides otherwise, in float64, of its layer's largest.

    Nearer than rounding (1e-6), two correct float32 convolutions may decide differently, and a gradient jumps.
    """
    exact, nearest = copy.deepcopy(network).double(), []

    def look(_conv: nn.Module, _inputs: object, y: Tensor) -> None:
        distances = [y.abs().min()]
        if min(y.shape[-2:]) > 1:
            first, second = (
                nn.functional.unfold(y.flatten(0, 1)[:, None].relu(), 2, stride=2).topk(2, dim=1).values.unbind(1)
            )
            distances.append((first - second)[first > 0].min())
        nearest.append(float(torch.stack(distances).min() / y.abs().max()))

    for name, module in exact.named_modules():
        if isinstance(module, nn.Conv2d) and not name.endswith(("score_b", "descriptor_b")):
            module.register_forward_hook(look)
    with torch.no_grad():
        exact(image.double())
    return min(nearest)


@isa
def test_the_network_has_the_plain_one_s_loss_and_gradients(isa, monkeypatch):
    torch.manual_seed(0)
    network = SuperPointNetwork.from_scratch(SuperPointConfig(), 20.0).to(memory_format=torch.channels_last)
    candidates = torch.rand(40, 1, 1, 16, 16)
    decided = [image for image in candidates if distance_from_decisions(network, image) > 4e-6]
    assert len(decided) >= 2

    def gradients(images: Tensor) -> list[Tensor]:
        network.zero_grad()
        logits, descriptors = network(images)
        (logits.square().mean() + descriptors.square().mean()).backward()
        found = [p.grad for p in network.parameters() if p.grad is not None]
        return [value.clone() for value in found] + [logits.detach(), descriptors.detach()]

    for images, gradient_too in ((torch.cat(decided), True), (torch.rand(2, 1, 48, 64), False)):
        monkeypatch.setenv("KEYGLUE_ISA", isa)
        assert kernels_for(network.model, images) is not None
        own = gradients(images)
        monkeypatch.setenv("KEYGLUE_ISA", "off")
        assert kernels_for(network.model, images) is None
        pairs = list(zip(own, gradients(images), strict=True))
        for found, expected in pairs if gradient_too else pairs[-2:]:
            assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_other_networks_and_types_take_the_plain_path():
    config = SuperPointConfig(encoder_hidden_sizes=(8, 16, 16), keypoint_decoder_dim=17)
    images = torch.rand(1, 1, 16, 16)
    assert kernels_for(SuperPointForKeypointDetection(config), images) is None
    published = SuperPointForKeypointDetection(SuperPointConfig())
    assert kernels_for(published, images) is not None
    assert kernels_for(published, images.double()) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels_for(published, images) is None


def test_kernels_for_bfloat16_do_not_train():
    if "amx-emulated" not in keyglue_native.supported():
        pytest.skip("emulating AMX takes AVX-512")
    kernels = keyglue_native.kernels("amx-emulated")
    assert not keyglue_native.trains(kernels)
    with pytest.raises(ValueError, match="none for training"):
        keyglue_native.weight_gradient(
            kernels, torch.zeros(1, 4, 4, 16), torch.zeros(1, 4, 4, 16), torch.zeros(36, 16, 16)
        )


def test_wrong_shapes_are_refused():
    kernels = keyglue_native.kernels(FLOAT32[0])
    maps, weight = torch.zeros(1, 4, 4, 16), torch.zeros(36, 1, 16, 16)
    with pytest.raises(ValueError, match="multiple of 16"):
        keyglue_native.convolve(kernels, maps[..., :8].contiguous(), weight, None, 1, maps, None)
    with pytest.raises(ValueError, match="weights have a wrong size"):
        keyglue_native.convolve(kernels, maps, weight[:35], None, 1, maps.clone(), None)
    with pytest.raises(ValueError, match="output has a wrong shape"):
        keyglue_native.convolve(kernels, maps, weight, None, 1, torch.zeros(1, 4, 8, 16), None)
    with pytest.raises(ValueError, match="different shapes"):
        keyglue_native.weight_gradient(kernels, maps, torch.zeros(2, 4, 4, 16), weight)
    with pytest.raises(ValueError, match="gradient has a wrong shape"):
        keyglue_native.gate(kernels, maps, maps, True, maps.clone(), torch.zeros(16))
