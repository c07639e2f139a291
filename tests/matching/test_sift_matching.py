"""LightGlue on SIFT: another width, so an input projection, and positions with scale and orientation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from random_models import lively_model

from keyglue import AutoConfig, Features, LightGlueForKeypointMatching, SIFTConfig

pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def model():
    detector = {"model_type": "sift", "max_keypoints": 200}
    return lively_model(detector=detector, descriptor_dim=64, num_hidden_layers=2, add_scale_ori=True)


@pytest.fixture(scope="module")
def pixels(photographs):
    return torch.stack([photographs["motorcycle_left"], photographs["motorcycle_right"]])[None]


def test_shapes_follow_the_detector(model):
    assert isinstance(model.config.detector, SIFTConfig)
    assert model.input_projection.weight.shape == (64, 128)
    assert model.positional_encoder.projector.weight.shape == (8, 4)
    assert not [name for name in model.state_dict() if name.startswith("keypoint_detector")]


def test_images_to_matches_and_back_from_disk(model, pixels, tmp_path):
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).detector.max_keypoints == 200
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path, dtype="float32")
    with torch.no_grad():
        a, b = model(pixels), loaded(pixels)
    assert a.mask.sum() == 400
    assert torch.equal(a.matches, b.matches)
    assert int((a.matches[0, 0] >= 0).sum()) > 20


def test_scale_and_orientation_change_the_answer(model, pixels):
    first, second = (model.extract(image) for image in pixels[0])
    turned = Features(
        keypoints=first.keypoints,
        descriptors=first.descriptors,
        image_size=first.image_size,
        scales=first.scales * 3,
        orientations=first.orientations + 1,
    )
    a, b = (model.log_assignments(features, second)[-1] for features in (first, turned))
    assert (a - b).abs().max() > 1e-3
