"""The documented API: its examples with only the import changed, auto classes, the pipeline, loading and saving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import keyglue
from keyglue import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForKeypointDetection,
    AutoModelForKeypointMatching,
    ConfigError,
    InputError,
    LightGlueConfig,
    LightGlueForKeypointMatching,
    LightGlueImageProcessor,
    SuperPointConfig,
    SuperPointForKeypointDetection,
    SuperPointImageProcessor,
    pipeline,
)


@pytest.fixture(scope="module")
def images(assets):
    return [Image.open(assets / "motorcycle_left.png"), Image.open(assets / "motorcycle_right.png")]


def test_pipeline_example(assets):
    keypoint_matcher = pipeline(task="keypoint-matching", model="keyglue-small")
    results = keypoint_matcher(
        [str(assets / "motorcycle_left.png"), str(assets / "motorcycle_right.png")], threshold=0.9
    )
    assert set(results[0]) == {"keypoint_image_0", "keypoint_image_1", "score"}
    assert set(results[0]["keypoint_image_0"]) == {"x", "y"}
    scores = [match["score"] for match in results]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0.9


def test_model_example(images):
    processor = AutoImageProcessor.from_pretrained("keyglue-small")
    model = AutoModel.from_pretrained("keyglue-small")
    inputs = processor(images, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    keypoints0, keypoints1 = outputs.keypoints0, outputs.keypoints1
    matches, matching_scores = outputs.matches, outputs.matching_scores
    assert keypoints0.shape == keypoints1.shape == (1, 1024, 2)
    assert keypoints0.data_ptr() == outputs.keypoints.data_ptr(), "a view"
    assert matches.shape == matching_scores.shape == (1, 2, 1024)
    assert matches.dtype == torch.int64

    image_sizes = [[(image.height, image.width) for image in images]]
    processed_outputs = processor.post_process_keypoint_matching(outputs, image_sizes, threshold=0.2)
    for output in processed_outputs:
        rows = zip(output["keypoints0"], output["keypoints1"], output["matching_scores"], strict=True)
        for keypoint0, keypoint1, matching_score in list(rows)[:5]:
            assert keypoint0.numpy().shape == keypoint1.numpy().shape == (2,)
            assert matching_score > 0.2
    (picture,) = processor.visualize_keypoint_matching(images, processed_outputs)
    assert isinstance(picture, Image.Image)


def test_config_example():
    configuration = LightGlueConfig()
    model = LightGlueForKeypointMatching(configuration)
    assert model.config is configuration
    assert model.num_parameters() == 13_744_594
    assert len(model.state_dict()) == 329


def test_documented_defaults():
    config = LightGlueConfig()
    found = (config.descriptor_dim, config.num_hidden_layers, config.num_attention_heads, config.filter_threshold)
    assert found == (256, 9, 4, 0.1)
    assert (config.depth_confidence, config.width_confidence, config.hidden_act) == (0.95, 0.99, "gelu")
    assert (config.initializer_range, config.attention_dropout, config.attention_bias) == (0.02, 0.0, True)
    assert config.trust_remote_code is False
    assert config.num_key_value_heads == 4
    assert config.replace(num_attention_heads=8).num_key_value_heads == 8
    assert LightGlueConfig(num_key_value_heads=2).replace(num_attention_heads=8).num_key_value_heads == 2
    assert isinstance(config.keypoint_detector_config, SuperPointConfig)
    detector = SuperPointConfig()
    assert (detector.keypoint_threshold, detector.max_keypoints, detector.nms_radius) == (0.005, -1, 4)
    assert detector.border_removal_distance == 4


def test_detector_settings_as_dictionary_or_object():
    by_dict = LightGlueConfig(keypoint_detector_config={"model_type": "superpoint", "max_keypoints": 7})
    by_object = LightGlueConfig(keypoint_detector_config=SuperPointConfig(max_keypoints=7))
    assert by_dict == by_object
    assert LightGlueForKeypointMatching(by_dict).keypoint_detector.config.max_keypoints == 7
    with pytest.raises(ConfigError, match="disk"):
        LightGlueConfig(keypoint_detector_config={"model_type": "disk"}, trust_remote_code=True)
    with pytest.raises(ConfigError, match="int"):
        LightGlueConfig(keypoint_detector_config=3)


@pytest.mark.parametrize(
    "values",
    [
        {"descriptor_dim": 255},
        {"descriptor_dim": 12, "num_attention_heads": 4},
        {"num_hidden_layers": 0},
        {"num_attention_heads": 2.5},
        {"num_key_value_heads": 3},
        {"depth_confidence": 1.5},
        {"width_confidence": "high"},
        {"filter_threshold": float("nan")},
        {"filter_threshold": -0.1},
        {"hidden_act": "gellu"},
        {"hidden_size": 128},
        {"depth_confidnece": 0.5},
        {"output_attentions": "yes"},
    ],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        LightGlueConfig(**values)


def test_configuration_round_trip(tmp_path):
    config = LightGlueConfig(descriptor_dim=64, num_key_value_heads=2, rotary_value=3, output_attentions=True)
    assert config.rotary_value == 3
    assert LightGlueConfig.from_dict(config.to_dict()) == config
    config.save_pretrained(tmp_path)
    assert LightGlueConfig.from_pretrained(tmp_path) == config
    assert AutoConfig.from_pretrained(tmp_path) == config
    assert LightGlueConfig.from_pretrained(tmp_path, depth_confidence=-1).depth_confidence == -1
    assert AutoConfig.for_model("superpoint", nms_radius=2) == SuperPointConfig(nms_radius=2)
    with pytest.raises(ConfigError, match="model_type"):
        SuperPointConfig.from_dict(config.to_dict())
    with pytest.raises(AttributeError, match=r"frozen|assign"):
        config.descriptor_dim = 3


def test_model_round_trip(tmp_path, images):
    torch.manual_seed(0)
    model = LightGlueForKeypointMatching(LightGlueConfig(descriptor_dim=32, num_hidden_layers=2)).eval()
    model.save_pretrained(tmp_path)
    loaded = LightGlueForKeypointMatching.from_pretrained(tmp_path)
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    detector = SuperPointForKeypointDetection.from_pretrained(tmp_path)
    assert torch.equal(
        detector.encoder.conv_blocks[0].conv_a.weight, model.keypoint_detector.encoder.conv_blocks[0].conv_a.weight
    )
    half = AutoModelForKeypointMatching.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, device_map="cpu")
    assert half.dtype == torch.bfloat16
    assert half.device == torch.device("cpu")
    assert half.num_parameters(only_trainable=True) == model.num_parameters()


def test_auto_classes_choose(tmp_path):
    assert isinstance(AutoModelForKeypointMatching.from_pretrained("keyglue-small"), LightGlueForKeypointMatching)
    detector = SuperPointForKeypointDetection.from_pretrained("keyglue-small")
    detector.save_pretrained(tmp_path)
    with pytest.raises(keyglue.CheckpointError, match="preprocessor_config"):
        AutoImageProcessor.from_pretrained(tmp_path)
    SuperPointImageProcessor().save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), SuperPointForKeypointDetection)
    assert isinstance(AutoModelForKeypointDetection.from_pretrained(tmp_path), SuperPointForKeypointDetection)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), SuperPointImageProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained("keyglue-small"), LightGlueImageProcessor)
    assert isinstance(AutoModel.from_config(SuperPointConfig()), SuperPointForKeypointDetection)
    with pytest.raises(InputError, match="superpoint"):
        AutoModelForKeypointMatching.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="from_pretrained"):
        AutoModel()


def test_outputs_and_flags(small, described):
    pair = [(described["coffee"], described["chelsea"])]
    with torch.inference_mode():
        plain = small(features=pair, return_dict=False)
        full = small(features=pair, output_attentions=True, output_hidden_states=True)
        everything = small(features=pair, output_attentions=True, output_hidden_states=True, return_dict=False)
    assert len(plain) == 5
    assert len(everything) == 7
    assert full.keys() == ["matches", "matching_scores", "keypoints", "prune", "mask", "hidden_states", "attentions"]
    assert torch.equal(full["matches"], plain[0])
    config = small.config.replace(output_attentions=True, output_hidden_states=True, return_dict=False)
    other = LightGlueForKeypointMatching(config).eval()
    with torch.inference_mode():
        assert len(other(features=pair)) == 7


def test_images_of_different_sizes_in_one_batch(small, assets):
    names = ["rocket.jpg", "astronaut.png", "chelsea.png", "coffee.png"]
    a, b, c, d = (Image.open(assets / name).convert("RGB") for name in names)
    processor = AutoImageProcessor.from_pretrained("keyglue-small", size={"longest_edge": 200})
    with torch.inference_mode():
        batch = small(**processor([[a, b], [c, d]], return_tensors="pt"))
        for row, pair in enumerate([[a, b], [c, d]]):
            alone = small(**processor(pair, return_tensors="pt"))
            width = alone.matches.shape[-1]
            assert torch.equal(batch.matches[row, :, :width], alone.matches[0])
            torch.testing.assert_close(batch.keypoints[row, :, :width], alone.keypoints[0])


@pytest.mark.parametrize(
    "shape", [(1, 3, 3, 32, 32), (2, 3, 32, 32), (0, 2, 3, 32, 32), (1, 2, 32, 32), (1, 2, 4, 32, 32)]
)
def test_wrong_batch_shapes_are_refused(small, shape):
    with pytest.raises(InputError, match="shape"):
        small(torch.rand(shape))


def test_pixels_or_features_but_not_both(small, described):
    pair = [(described["coffee"], described["chelsea"])]
    with pytest.raises(InputError, match="either"):
        small()
    with pytest.raises(InputError, match="either"):
        small(torch.rand(1, 2, 1, 32, 32), features=pair)
    with pytest.raises(InputError, match="pairs"):
        small(features=[])


@pytest.mark.parametrize("inputs", [None, [], "a.png", ["a", "b", "c"], [["a", "b"], ["c"]], [1, 2], {}])
def test_pipeline_refuses_what_is_no_pair(small, inputs):
    matcher = pipeline("keypoint-matching", model=small, image_processor=LightGlueImageProcessor())
    with pytest.raises(InputError, match="pair"):
        matcher(inputs)


def test_pipeline_arguments(small):
    with pytest.raises(InputError, match="task"):
        pipeline("image-classification")
    with pytest.raises(InputError, match="colour"):
        pipeline("keypoint-matching", colour=3)
    matcher = pipeline("keypoint-matching", model=small, image_processor=LightGlueImageProcessor(), device=-1)
    with pytest.raises(InputError, match="threshold"):
        matcher([np.zeros((9, 9)), np.zeros((9, 9))], threshold=2)
    assert keyglue.KeypointMatchingPipeline is type(matcher)


def test_labels_give_a_loss_and_are_checked(small, described):
    first = described["coffee"].select(torch.arange(30))
    labels = torch.arange(30).repeat(1, 2, 1)
    with torch.inference_mode():
        out = small(features=[(first, first)], labels=labels)
        wrong = small(features=[(first, first)], labels=labels.roll(1, dims=-1).flip(1) * 0 - 1)
    assert out.loss.shape == ()
    assert out.loss < wrong.loss
    assert out[0] is out.loss
    assert out.stop_layers.tolist() == [6]
    for bad, text in (
        (labels + 1, "indices below 30"),
        (labels * 0 - 5, "indices"),
        (labels.flip(-1) * 0, "contradict"),
    ):
        with pytest.raises(InputError, match=text):
            small(features=[(first, first)], labels=bad)
    with pytest.raises(InputError, match="shape"):
        small(features=[(first, first)], labels=labels[:, :, :5])


def test_features_of_inference_serve_in_training(small, photographs):
    first = small.extract(photographs["coffee"]).select(torch.arange(20))
    model = LightGlueForKeypointMatching(LightGlueConfig(descriptor_dim=32, num_hidden_layers=2))
    loss = model(features=[(first, first)], labels=torch.arange(20).repeat(1, 2, 1)).loss
    loss.backward()
    assert model.input_projection.weight.grad.abs().sum() > 0
    without_no_grad = model.eval()(features=[(first, first)])
    assert without_no_grad.matches.shape == (1, 2, 20)
