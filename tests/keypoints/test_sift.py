from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from keyglue.base.errors import ConfigError, InputError, MissingDependencyError
from keyglue.base.types import Features
from keyglue.keypoints.sift import SIFTConfig, SIFTForKeypointDetection
from keyglue.matching.nearest_neighbor import match_nearest

pytest.importorskip("cv2")


def read(path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255


def sift(**settings) -> SIFTForKeypointDetection:
    return SIFTForKeypointDetection(SIFTConfig(**settings))


@pytest.fixture(scope="module")
def astronaut(assets):
    return read(assets / "astronaut.png")


@pytest.fixture(scope="module")
def features(astronaut):
    return sift().extract(astronaut)


def blob(x, y, sigma, size=(160, 200)):
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (0.2 + 0.6 * torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)))[None]


def test_features_are_complete(features, astronaut):
    count = len(features)
    assert count > 1000
    assert features.image_size == astronaut.shape[1:]
    assert features.detector == "sift"
    assert features.descriptors.shape == (count, 128)
    assert {features.keypoints.dtype, features.descriptors.dtype, features.scales.dtype} == {torch.float32}
    assert (features.descriptors.norm(dim=1) - 1).abs().max() < 1e-5
    assert (features.keypoint_scores[:-1] >= features.keypoint_scores[1:]).all()
    assert features.scales.min() > 1
    assert 0 <= features.orientations.min() < 0.2
    assert 6 < features.orientations.max() <= 2 * np.pi + 1e-5


@pytest.mark.parametrize(("x", "y"), [(80.0, 60.0), (100.25, 71.5), (90.7, 100.1)])
@pytest.mark.parametrize("sigma", [3.0, 6.5])
def test_a_blob_is_found_where_it_is(x, y, sigma):
    found = sift().extract(blob(x, y, sigma))
    best = found.keypoints[0]
    assert (best - torch.tensor([x, y])).abs().max() < 0.1
    # The diameter grows with the blob.
    assert 1.5 * sigma < found.scales[0] < 2.1 * sigma


def test_orientation_is_measured_from_x_towards_y():
    # A small blob on a steep ramp: most gradients point where the ramp rises, to the right or, transposed, down.
    columns = torch.arange(64).expand(64, 64)
    rows = columns.T
    spot = 0.2 * torch.exp(-((columns - 31) ** 2 + (rows - 33) ** 2) / 32)
    right = sift().extract((0.1 + 0.011 * columns + spot)[None])
    down = sift().extract((0.1 + 0.011 * rows + spot.T)[None])
    assert torch.cos(right.orientations[0]) > 0.98
    assert torch.sin(down.orientations[0]) > 0.98


def test_quarter_turn_gives_the_same_points_turned(astronaut, features):
    turned = sift().extract(torch.rot90(astronaut, 1, (1, 2)))
    found = match_nearest(features.descriptors, turned.descriptors, ratio=0.8)
    index0, index1 = found.indices.T
    assert len(found) > 0.6 * len(features)
    # Counter-clockwise: (x, y) goes to (y, width - 1 - x); orientations fall by a quarter turn.
    x, y = features.keypoints[index0].T
    expected = torch.stack([y, astronaut.shape[2] - 1 - x], dim=1)
    error = (turned.keypoints[index1] - expected).norm(dim=1)
    assert (error < 1).float().mean() > 0.95
    assert (turned.keypoints[index1] - expected).median(dim=0).values.abs().max() < 0.02  # no bias in the frame
    right = error < 1
    change = turned.orientations[index1][right] - features.orientations[index0][right] + np.pi / 2
    assert (torch.cos(change) > 0.98).float().mean() > 0.95


def test_same_image_same_bits(astronaut, features):
    again = sift().extract(astronaut)
    assert torch.equal(again.keypoints, features.keypoints)
    assert torch.equal(again.descriptors, features.descriptors)
    assert torch.equal(again.orientations, features.orientations)


def test_max_keypoints_keeps_the_strongest(astronaut, features):
    best = sift(max_keypoints=100).extract(astronaut)
    assert torch.equal(best.keypoints, features.keypoints[:100])
    assert torch.equal(best.descriptors, features.descriptors[:100])
    assert len(sift(max_keypoints=0).extract(astronaut)) == 0
    assert 200 <= len(sift(nfeatures=300).extract(astronaut)) <= 310


def test_one_keypoint_a_pixel_unless_all_are_wanted(astronaut, features):
    pixels = features.keypoints.round()
    assert len(pixels.unique(dim=0)) == len(pixels)
    everything = sift(nms_radius=None).extract(astronaut)
    assert len(everything) > len(features)
    assert len(everything.keypoints.unique(dim=0)) < len(everything)
    apart = sift(nms_radius=4).extract(astronaut)
    difference = (apart.keypoints.round()[:, None] - apart.keypoints.round()[None]).abs().amax(dim=2)
    assert len(apart) < len(features)
    assert (difference + 99 * torch.eye(len(apart))).min() > 4


def test_rootsift_is_the_square_root_of_sift(astronaut, features):
    plain = sift(rootsift=False).extract(astronaut)
    expected = torch.nn.functional.normalize(plain.descriptors, p=1, dim=1).sqrt()
    assert (features.descriptors - expected).abs().max() < 1e-5
    assert (plain.descriptors.norm(dim=1) - 1).abs().max() < 1e-5


def test_colour_and_gray_give_the_same(astronaut):
    gray = (astronaut * torch.tensor([0.2989, 0.5870, 0.1140])[:, None, None]).sum(dim=0, keepdim=True)
    from_gray, from_colour = sift().extract(gray), sift().extract(astronaut)
    assert abs(len(from_gray) - len(from_colour)) <= 2


def test_mask_says_where_keypoints_may_be(astronaut, features):
    mask = torch.zeros(astronaut.shape[1:], dtype=torch.bool)
    mask[100:300, 50:200] = True
    inside = sift().extract(astronaut, mask=mask)
    columns, rows = inside.keypoints.round().long().T
    assert len(inside) > 50
    assert mask[rows, columns].all()
    assert len(sift().extract(astronaut, mask=~mask)) + len(inside) == len(features)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 40), (1, 2, 3), (3, 64, 64)])
def test_images_with_nothing_in_them_give_empty_features(shape):
    found = sift().extract(torch.full(shape, 0.5))
    assert len(found) == 0
    assert found.descriptors.shape == (0, 128)
    assert found.scales.shape == found.orientations.shape == (0,)
    assert found.image_size == shape[1:]


def test_padded_batches_give_the_features_of_single_images(astronaut):
    padded = torch.zeros(2, 3, 300, 400)
    padded[0, :, :300, :250] = astronaut[:, :300, :250]
    padded[1, :, :200, :400] = astronaut[:, 100:300, :400]
    detector = sift(max_keypoints=200)
    batch = detector.extract_batch(padded, [(300, 250), (200, 400)])
    assert torch.equal(batch[0].keypoints, detector.extract(astronaut[:, :300, :250]).keypoints)
    assert batch[1].image_size == (200, 400)


def test_model_has_no_weights_and_is_saved_and_loaded_all_the_same(tmp_path, astronaut):
    detector = sift(max_keypoints=50, nms_radius=None)
    assert detector.num_parameters() == 0
    assert detector.device == torch.device("cpu")
    detector.save_pretrained(tmp_path)
    again = SIFTForKeypointDetection.from_pretrained(tmp_path)
    assert again.config.nms_radius is None
    assert torch.equal(again.extract(astronaut).keypoints, detector.extract(astronaut).keypoints)
    assert SIFTForKeypointDetection().config.max_keypoints == -1


def test_features_survive_a_file(tmp_path, features):
    features.save(tmp_path / "a.safetensors")
    again = Features.load(tmp_path / "a.safetensors")
    assert torch.equal(again.orientations, features.orientations)
    assert torch.equal(again.scales, features.scales)


def test_stereo_pair_agrees_with_its_disparity(assets):
    detector = sift()
    left, right = (detector.extract(read(assets / f"motorcycle_{side}.png")) for side in ("left", "right"))
    found = match_nearest(left.descriptors, right.descriptors, ratio=0.8)
    points0, points1 = left.keypoints[found.indices[:, 0]], right.keypoints[found.indices[:, 1]]
    with np.load(assets / "motorcycle_disparity.npz") as file:
        disparity = torch.from_numpy(file[file.files[0]])
    columns, rows = points0.round().long().T
    there = disparity[rows, columns]
    known = torch.isfinite(there)
    expected = points0 - torch.stack([there, torch.zeros_like(there)], dim=1)
    error = (points1 - expected)[known].norm(dim=1)
    assert known.sum() > 900
    assert (error < 2).float().mean() > 0.9  # measured: 1011 and 0.933


@pytest.mark.parametrize(
    "image",
    [torch.rand(64, 64), torch.rand(2, 64, 64), torch.rand(3, 0, 64), torch.full((3, 9, 9), torch.nan)],
    ids=["no channels", "two channels", "empty", "nan"],
)
def test_wrong_images_are_refused(image):
    with pytest.raises(InputError):
        sift().extract(image)


def test_wrong_masks_and_settings_are_refused(astronaut):
    with pytest.raises(InputError, match="mask"):
        sift().extract(astronaut, mask=torch.ones(3, 3))
    for wrong in (
        {"first_octave": 0},
        {"descriptor_decoder_dim": 256},
        {"nms_radius": -1},
        {"edge_threshold": 0},
        {"num_octave_layers": 0},
        {"max_keypoints": -2},
    ):
        with pytest.raises(ConfigError):
            SIFTConfig(**wrong)


def test_missing_opencv_says_what_to_install(monkeypatch, astronaut):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match=r"keyglue\[opencv\]"):
        sift().extract(astronaut)
