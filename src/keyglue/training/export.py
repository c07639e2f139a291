"""Writing model folders in files under 16 MB, with the settings of the image processor beside the model's own."""

from __future__ import annotations

import json
from pathlib import Path

from keyglue.base.checkpoints import INDEX_NAME, WEIGHTS_NAME, read_state_dict, write_state_dict
from keyglue.base.files import atomic_write
from keyglue.base.pretrained import PreTrainedModel
from keyglue.images.processor import LightGlueImageProcessor
from keyglue.images.superpoint_processor import SuperPointImageProcessor
from keyglue.keypoints.superpoint import SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.lightglue import LightGlueMatcher
from keyglue.training.state import SHARD_BYTES, shards

_LONG_SIDE = 1024


def write_detector(folder: Path, detector: SuperPointForKeypointDetection) -> None:
    """Write SuperPoint and its processor as a folder that ``from_pretrained`` loads."""
    _write(folder, detector)
    SuperPointImageProcessor(do_grayscale=True, size={"longest_edge": _LONG_SIDE}).save_pretrained(folder)


def write_joint_model(folder: Path, detector: SuperPointForKeypointDetection, matcher: LightGlueMatcher) -> None:
    """Write a detector with its matcher, and their processor, as a folder that ``from_pretrained`` loads.

    Args:
        folder: Made where it is not there.
        detector: The detector.
        matcher: A matcher for its descriptors.
    """
    # What was calibrated before these weights were trained does not hold for them.
    config = matcher.config.replace(keypoint_detector_config=detector.config, match_probability=None)
    joint = LightGlueForKeypointMatching(config)
    tensors = dict(matcher.state_dict())
    tensors.update({f"keypoint_detector.{name}": value for name, value in detector.state_dict().items()})
    joint.load_state_dict(tensors)
    _write(folder, joint)
    LightGlueImageProcessor(size={"longest_edge": _LONG_SIDE}).save_pretrained(folder)


def _write(folder: Path, model: PreTrainedModel) -> None:
    """Save a model; weights too large for one file become several and an index, as transformers has it."""
    model.save_pretrained(folder)
    whole = folder / WEIGHTS_NAME
    parts = shards(read_state_dict(whole))
    if len(parts) == 1 and whole.stat().st_size < SHARD_BYTES:
        for stale in (folder / INDEX_NAME, *folder.glob("model-*-of-*.safetensors")):
            stale.unlink(missing_ok=True)
        return
    names = [f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write_state_dict(folder / name, part)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    size = sum(tensor.numel() * tensor.element_size() for part in parts for tensor in part.values())
    atomic_write(
        folder / INDEX_NAME, json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=2)
    )
    whole.unlink()
