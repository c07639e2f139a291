"""Points where transformers' LightGlue (5.23) is wrong: each is right here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "matching"))
from random_models import enliven, lively_model

import keyglue
from keyglue import (
    LightGlueConfig,
    LightGlueForKeypointMatching,
    LightGlueImageProcessor,
    SuperPointForKeypointDetection,
)


@pytest.fixture(scope="module")
def pairs(described):
    d = described
    return [
        (d["motorcycle_left"], d["motorcycle_right"]),
        (d["coffee"].select(torch.arange(60)), d["coffee"].select(torch.arange(60))),
        (d["astronaut"], d["rocket"]),
        (d["chelsea"], d["chelsea"]),
    ]


@pytest.fixture(scope="module")
def ragged(pairs):
    """A model in which some of these pairs stop at the second layer and the others run to the end."""
    model = lively_model(descriptor_dim=64, num_hidden_layers=6)
    enliven(model, pairs)
    with torch.inference_mode():
        for index, head in enumerate(model.token_confidence):
            head.token.bias.add_(1 if index == 1 else -100)
        for share in torch.linspace(0.2, 0.98, 79).tolist():
            chosen = variant(model, depth_confidence=share)
            stops = {m.stop_layer for m in chosen.match_pairs(pairs)}
            if stops == {2, 6}:
                return chosen
    pytest.fail("no share of confident points tells these pairs apart")


def variant(model, **changes):
    other = type(model)(model.config.replace(**changes)).eval()
    other.load_state_dict(model.state_dict())
    return other


@torch.inference_mode()
def test_1_pairs_that_stop_at_different_layers_keep_their_rows(ragged, pairs):
    batch = ragged(features=pairs)
    for row, pair in enumerate(pairs):
        alone = ragged(features=[pair])
        width = alone.matches.shape[-1]
        assert torch.equal(batch.matches[row, :, :width], alone.matches[0])
        assert (batch.matches[row, :, width:] == -1).all()


@torch.inference_mode()
def test_2_one_pair_stops_early_and_another_reaches_the_last_layer(ragged, pairs):
    stops = ragged(features=pairs).stop_layers.tolist()
    assert min(stops) < 6
    assert max(stops) == 6


def test_3_pipeline_coordinates_of_images_that_are_not_square(assets):
    """The stereo pair is 741 wide and 500 high; its matches lie on the same row, left of where they were."""
    matches = keyglue.pipeline("keypoint-matching")([assets / "motorcycle_left.png", assets / "motorcycle_right.png"])
    first = np.array([list(m["keypoint_image_0"].values()) for m in matches[:200]])
    second = np.array([list(m["keypoint_image_1"].values()) for m in matches[:200]])
    assert first[:, 0].max() > 500, "points must reach beyond the height in x"
    assert first[:, 1].max() < 500
    assert np.median(np.abs(first[:, 1] - second[:, 1])) < 1.5
    assert np.median(first[:, 0] - second[:, 0]) > 5


@pytest.mark.parametrize("settings", [{"depth_confidence": -1}, {"width_confidence": -1}])
@pytest.mark.parametrize("both", [False, True])
@torch.inference_mode()
def test_4_depth_and_width_can_be_off_and_integers_are_numbers(small, pairs, settings, both):
    settings = {"depth_confidence": -1, "width_confidence": -1} if both else settings
    config = LightGlueConfig(**settings, attention_dropout=0, descriptor_dim=64, num_hidden_layers=2)
    output = LightGlueForKeypointMatching(config).eval()(features=pairs[:2])
    assert output.matches.shape == (2, 2, output.mask.shape[-1])
    sizes = [[pair[0].image_size, pair[1].image_size] for pair in pairs[:2]]
    assert len(LightGlueImageProcessor().post_process_keypoint_matching(output, sizes)) == 2


def test_5_keypoints_are_not_cut_to_integers(assets):
    model = LightGlueForKeypointMatching.from_pretrained("keyglue-small", hf_compatible=True)
    images = [Image.open(assets / name) for name in ("motorcycle_left.png", "motorcycle_right.png")]
    processor = LightGlueImageProcessor()
    with torch.inference_mode():
        output = model(**processor(images, return_tensors="pt"))
    sizes = [[(image.height, image.width) for image in images]]
    found = processor.post_process_keypoint_matching(output, sizes)[0]["keypoints0"]
    assert found.is_floating_point()
    fraction = found - found.floor()
    assert fraction.std() > 0.2, "resized from 640 to 741 pixels, points fall between pixels"
    # The centre of a pixel of the resized image is where the resizing put it, without half a pixel of bias.
    pixel = (output.keypoints0[0] * torch.tensor([640, 480])).round()
    expected = (pixel + 0.5) * torch.tensor([741 / 640, 500 / 480]) - 0.5
    assert (torch.cdist(found, expected, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values < 1e-3).all()


def test_6_the_aspect_ratio_is_kept(assets):
    processor = keyglue.AutoImageProcessor.from_pretrained("keyglue-small")
    pixels = processor([Image.open(assets / "rocket.jpg"), Image.open(assets / "astronaut.png")], return_tensors="pt")
    assert pixels.image_sizes.tolist() == [[[427, 640], [512, 512]]]
    assert pixels.pixel_values.shape == (1, 2, 3, 512, 640)


def test_7_grayscale_images_can_be_drawn_and_features_are_reused(small, photographs, monkeypatch):
    images = [Image.fromarray((photographs[name][0].numpy() * 255).astype(np.uint8)) for name in ("coffee", "chelsea")]
    processor = LightGlueImageProcessor()
    with torch.inference_mode():
        output = small(**processor(images, return_tensors="pt"))
    found = processor.post_process_keypoint_matching(output, [[(i.height, i.width) for i in images]])
    (picture,) = processor.visualize_keypoint_matching(images, found)
    assert picture.mode == "RGB"

    calls = []
    describe = type(small.keypoint_detector).extract
    monkeypatch.setattr(
        type(small.keypoint_detector),
        "extract",
        lambda self, image, **kw: calls.append(1) or describe(self, image, **kw),
    )
    a, b = images
    keyglue.pipeline("keypoint-matching", model=small, image_processor=processor)([[a, b], [b, a], [a, a]])
    assert len(calls) == 2, "two images are described once each"


@pytest.mark.parametrize("turns", range(4))
@torch.inference_mode()
def test_8_the_border_is_free_on_all_four_sides(photographs, turns):
    image = torch.rot90(photographs["chelsea"], turns, (1, 2))
    found = SuperPointForKeypointDetection.from_pretrained("keyglue-small", refinement_radius=0).extract(image)
    height, width = image.shape[1:]
    assert len(found) > 100
    x, y = found.keypoints.T
    assert min(x.min(), y.min(), (width - 1 - x).min(), (height - 1 - y).min()) >= 4


def test_9_it_trains(described):
    torch.manual_seed(0)
    model = lively_model(descriptor_dim=64, num_hidden_layers=2).train()
    first = described["astronaut"].select(torch.arange(80))
    labels = torch.arange(80).repeat(1, 2, 1)
    labels[0, :, 70:] = -1
    optimiser = torch.optim.Adam([p for n, p in model.named_parameters() if "keypoint_detector" not in n], lr=1e-3)
    losses = []
    for _ in range(25):
        loss = model(features=[(first, first)], labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is None for p in model.keypoint_detector.parameters())


def test_10_a_list_with_one_pair_stays_a_list(small, photographs):
    a, b = (Image.fromarray((photographs[n][0].numpy() * 255).astype(np.uint8)) for n in ("coffee", "chelsea"))
    matcher = keyglue.pipeline("keypoint-matching", model=small, image_processor=LightGlueImageProcessor())
    single, listed = matcher([a, a]), matcher([[a, a]])
    assert isinstance(single[0], dict)
    assert len(listed) == 1
    assert listed[0] == single
    assert len(matcher([[a, b], [b, a]])) == 2


def test_padding_does_not_overwrite_the_last_keypoint(ragged, pairs):
    """Theirs writes padding over the last keypoint's match where the images keep different numbers of points."""
    first, second = pairs[0]
    last = len(first) - 1
    with torch.inference_mode():
        whole = ragged.match(first, second)
        matched = int((whole.matches0 >= 0).nonzero()[0])
        order = torch.cat([torch.arange(matched), torch.arange(matched + 1, last + 1), torch.tensor([matched])])
        moved = ragged(features=[(first.select(order), second)])
    assert int(moved.matches[0, 0, last]) == int(whole.matches0[matched])


def test_matches_are_moved_to_where_the_images_agree(assets):
    image = Image.open(assets / "coffee.png").convert("RGB")
    moved = image.transform(image.size, Image.Transform.AFFINE, (0.9, 0, 20, 0, 0.9, 10), Image.Resampling.BICUBIC)
    matcher = keyglue.Matcher.from_pretrained()

    def errors(**settings):
        result = matcher.match(image, moved, **settings)
        # Pillow maps pixel corners: x = 0.9 (x' + 0.5) + 20 - 0.5.
        return np.hypot(*((result.points0 + 0.5 - [20, 10]) / 0.9 - 0.5 - result.points1).T)

    found, refined = errors(refine=False), errors()
    assert (found < 0.25).mean() < 0.6
    assert (refined < 0.25).mean() > 0.9


def test_a_photograph_on_its_side_is_matched(assets):
    image = Image.open(assets / "motorcycle_left.png").convert("RGB")
    turned = image.transpose(Image.Transpose.ROTATE_90)

    def right(result):
        x, y = result.points0.T
        return int((np.hypot(y - result.points1[:, 0], image.width - 1 - x - result.points1[:, 1]) < 3).sum())

    matcher = keyglue.Matcher.from_pretrained(device="cpu")
    one_look = right(matcher.match(image, turned, rotate=0, zoom=1))
    assert right(matcher.match(image, turned)) > max(800, 5 * one_look)
