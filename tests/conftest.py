"""Fixtures that several folders of tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from keyglue.base.types import Features
from keyglue.images.read import read_image
from keyglue.images.resize import resize_image, to_grayscale
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.configuration import LightGlueConfig

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the bundled photographs."""
    return ROOT / "assets"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the evaluation data beside the project; the test is skipped where it is not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data beside the project is not here")
    return folder


@pytest.fixture(scope="session")
def photographs(assets: Path) -> dict[str, torch.Tensor]:
    """Bundled photographs as gray (1, h, w) tensors from 0 to 1, at sizes that keep tests quick."""
    sizes = {"motorcycle_left.png": (240, 352), "motorcycle_right.png": (240, 352), "astronaut.png": (256, 256)}
    sizes.update({"chelsea.png": (200, 304), "coffee.png": (200, 304), "rocket.jpg": (216, 320)})
    return {
        name.partition(".")[0]: to_grayscale(resize_image(read_image(assets / name), size)) / 255
        for name, size in sizes.items()
    }


@pytest.fixture(scope="session")
def small() -> LightGlueForKeypointMatching:
    """The bundled model."""
    return LightGlueForKeypointMatching.from_pretrained("keyglue-small")


@pytest.fixture(scope="session")
def described(small: LightGlueForKeypointMatching, photographs: dict[str, torch.Tensor]) -> dict[str, Features]:
    """Features of the bundled photographs, at most 300 keypoints each."""
    detector = SuperPointForKeypointDetection.from_pretrained("keyglue-small", max_keypoints=300)
    with torch.no_grad():
        return {name: detector.extract(image) for name, image in photographs.items()}


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LightGlueForKeypointMatching]:
    """Makes detectors and matchers with few random weights, of which none is zero and none equals another."""

    def make(*, seed: int = 0, shared_query_key: bool = True, **settings: Any) -> LightGlueForKeypointMatching:
        detector = {"encoder_hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16, "descriptor_decoder_dim": 24}
        values = {"descriptor_dim": 32, "num_hidden_layers": 3, "num_attention_heads": 2, **settings}
        config = LightGlueConfig(**{"keypoint_detector_config": {"model_type": "superpoint", **detector}, **values})
        model = LightGlueForKeypointMatching(config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * max(parameter.shape[-1], 4) ** -0.5)
            if shared_query_key:
                for layer in model.transformer_layers:
                    layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())
        return model

    return make
