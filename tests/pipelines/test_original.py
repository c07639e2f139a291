"""Code written for the original LightGlue repository runs with only the import changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import keyglue
from keyglue import InputError, LightGlue, SuperPoint, match_pair
from keyglue.utils import load_image, rbd


@pytest.fixture(scope="module")
def stereo(assets):
    return [load_image(assets / f"motorcycle_{side}.png") for side in ("left", "right")]


@pytest.fixture(scope="module")
def extractor():
    return SuperPoint(max_num_keypoints=256, resize=400).eval()


@pytest.fixture(scope="module")
def matcher():
    return LightGlue(features="superpoint").eval()


def test_the_readme_of_the_original(stereo, extractor, matcher):
    image0, image1 = stereo
    feats0 = extractor.extract(image0)
    feats1 = extractor.extract(image1)
    matches01 = matcher({"image0": feats0, "image1": feats1})
    assert feats0["keypoints"].shape == (1, 256, 2)
    assert feats0["image_size"].tolist() == [[741, 500]]
    assert set(matches01) == {
        *("matches0", "matches1", "matching_scores0", "matching_scores1"),
        *("matches", "scores", "stop", "prune0", "prune1"),
    }
    feats0, feats1, matches01 = (rbd(x) for x in (feats0, feats1, matches01))
    matches = matches01["matches"]
    points0 = feats0["keypoints"][matches[..., 0]]
    points1 = feats1["keypoints"][matches[..., 1]]
    assert len(matches) > 80
    assert (points0[:, 1] - points1[:, 1]).abs().median() < 2
    assert matches01["scores"].shape == (len(matches),)
    assert 1 <= matches01["stop"] < 6, "the pair stops early"


def test_match_pair_is_the_same(stereo, extractor, matcher):
    feats0, feats1, matches01 = match_pair(extractor, matcher, *stereo)
    again = rbd(matcher({"image0": extractor.extract(stereo[0]), "image1": extractor.extract(stereo[1])}))
    assert feats0["keypoints"].shape == (256, 2)
    assert len(feats1["descriptors"]) == 256
    assert torch.equal(matches01["matches"], again["matches"])


def test_forward_takes_the_image_as_it_is(stereo, extractor, matcher):
    image = torch.nn.functional.avg_pool2d(stereo[0][None], 2)
    found = extractor({"image": image})
    size = torch.tensor([[image.shape[3], image.shape[2]]])
    own = matcher({"image0": {**found, "image": image}, "image1": {**found, "image_size": size}})
    kept = own["matches0"][0] >= 0
    assert kept.float().mean() > 0.9
    assert torch.equal(own["matches0"][0][kept], kept.nonzero().squeeze(1)), "an image matches itself"


def test_settings_of_the_original(stereo, extractor):
    matcher = LightGlue(
        "superpoint", depth_confidence=-1, width_confidence=-1, filter_threshold=0.9, flash=False, mp=True
    )
    matcher.compile(mode="reduce-overhead")
    _, _, found = match_pair(extractor, matcher, *stereo)
    assert (found["scores"] > 0.9).all()
    assert found["stop"] == 6


def test_sift_describes_scale_and_orientation(stereo):
    pytest.importorskip("cv2")
    found = keyglue.SIFT(max_num_keypoints=100, resize=300).extract(stereo[0])
    assert found["descriptors"].shape == (1, 100, 128)
    assert found["scales"].shape == found["oris"].shape == (1, 100)


def test_mistakes_are_explained(stereo, extractor, matcher):
    with pytest.raises(InputError, match="weights="):
        LightGlue(features="disk")
    with pytest.raises(InputError, match="unknown features"):
        LightGlue(features="superpont")
    with pytest.raises(InputError, match="image0 and image1"):
        matcher({"image0": extractor.extract(stereo[0])})
    found = extractor.extract(stereo[0])
    with pytest.raises(InputError, match="batch dimension"):
        matcher({"image0": rbd(found) | {"image_size": found["image_size"]}, "image1": found})
    with pytest.raises(InputError, match="image_size"):
        matcher({"image0": {"keypoints": 0, "descriptors": 0}, "image1": found})
    with pytest.raises(InputError, match="one image"):
        extractor.extract(torch.rand(2, 1, 32, 32))
    with pytest.raises(InputError, match="grayscale"):
        extractor.extract(stereo[0], grayscale=True)


def test_load_image_resizes(assets):
    assert load_image(assets / "rocket.jpg", resize=320).shape == (3, 214, 320)
    image = load_image(assets / "brick.png")
    assert image.shape[0] == 3
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    assert np.isclose(float(image.max()), 1, atol=0.2)
