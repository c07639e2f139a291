"""From one layout of checkpoints to another: the original releases' files, and the folders of transformers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from keyglue.base.checkpoints import (
    CHECKPOINT_SUFFIXES,
    WEIGHTS_NAME,
    StateDict,
    load_strictly,
    read_model,
    read_state_dict,
    write_state_dict,
)
from keyglue.base.config import CONFIG_NAME
from keyglue.base.devices import resolve_dtype
from keyglue.base.errors import CheckpointError, InputError
from keyglue.base.hub import Source
from keyglue.base.pretrained import PreTrainedModel
from keyglue.images.base_processor import PREPROCESSOR_NAME
from keyglue.images.processor import LightGlueImageProcessor
from keyglue.images.superpoint_processor import SuperPointImageProcessor
from keyglue.keypoints.formats import is_original_superpoint, superpoint_to_original
from keyglue.keypoints.superpoint import JOINT_PREFIX, SuperPointForKeypointDetection
from keyglue.matching.keypoint_matching import LightGlueForKeypointMatching
from keyglue.matching.lightglue.formats import matcher_to_original
from keyglue.matching.lightglue.lightglue import LightGlueMatcher

_LAYOUTS = ("transformers", "original")
_PROCESSORS: dict[type[PreTrainedModel], type[LightGlueImageProcessor] | type[SuperPointImageProcessor]] = {
    LightGlueForKeypointMatching: LightGlueImageProcessor,
    SuperPointForKeypointDetection: SuperPointImageProcessor,
}
_CARD = "README.md"
Location = str | os.PathLike[str]


def convert_checkpoint(
    source: Location,
    target: Location,
    *,
    detector: Location | None = None,
    to: str = "transformers",
    dtype: str | torch.dtype | None = None,
) -> list[Path]:
    """Write a checkpoint in another layout, strictly: no tensor is left out or made up.

    To "transformers": a folder with config.json, model.safetensors and, where there is a detector,
    preprocessor_config.json. An original matcher without ``detector`` becomes a folder that
    ``LightGlueMatcher.from_pretrained`` loads.

    To "original": the matcher's file and, beside it, the detector's in SuperPoint's original layout. ``target`` is a
    folder (lightglue.pth, superpoint.pth) or names the matcher's file, of which the detector's takes its name: of
    x.safetensors it is x_superpoint.safetensors.

    Args:
        source: A matcher, with or without its detector, or a SuperPoint alone: a bundled name, a folder, a Hub id, or a
            file in the original layout.
        target: What to write.
        detector: SuperPoint to go with the matcher, in any layout, instead of one that ``source`` holds.
        to: Layout to write, "transformers" or "original".
        dtype: Floating point type to write; that of the source unless given.

    Returns:
        The files written.

    Raises:
        CheckpointError: A checkpoint is missing, damaged or incomplete, has tensors left over, or holds what the layout
            can't; or matcher and detector don't belong together.
        InputError: An argument is not as described.
    """
    if to not in _LAYOUTS:
        raise InputError(f"unknown layout {to!r}; there are {' and '.join(_LAYOUTS)}.")
    folder = Path(target).suffix.lower() not in CHECKPOINT_SUFFIXES
    if to == "transformers" and not folder:
        raise InputError(f"the transformers layout is a folder of files; {target} names a file.")
    place, _ = Source.split(source, {})
    model = _load(place, detector)
    if dtype is not None:
        model = model.to(resolve_dtype(dtype))
    if to == "original":
        return _write_original(model, Path(target), folder)
    return _write_transformers(model, Path(target), place, one_source=detector is None)


def _load(place: Source, detector: Location | None) -> PreTrainedModel:
    """Return what a checkpoint holds: a detector, a matcher, or both."""
    source = place.name
    if place.single_file is not None:
        names, kind = read_state_dict(place.single_file), ""
    else:
        names, values = read_model(place)
        kind = values.get("model_type", "")
    if kind == "superpoint" or is_original_superpoint(names):
        if detector is not None:
            raise InputError(f"{source} is a detector itself, and no matcher that detector= could go with.")
        return SuperPointForKeypointDetection.from_pretrained(source, dtype="auto")
    matcher = LightGlueMatcher.from_pretrained(source, dtype="auto")
    own = any(name.startswith(JOINT_PREFIX) for name in names)
    if detector is None and not own:
        without_weights = matcher.config.detector.model_type != "superpoint"
        return _join(matcher, None) if without_weights else matcher
    found = SuperPointForKeypointDetection.from_pretrained(source if detector is None else detector, dtype="auto")
    return _join(matcher, found)


def _join(matcher: LightGlueMatcher, detector: SuperPointForKeypointDetection | None) -> LightGlueForKeypointMatching:
    """Return matcher and detector as one model; None for a detector that has no weights."""
    config, tensors = matcher.config, dict[str, torch.Tensor](matcher.state_dict())
    if detector is not None:
        if detector.config.descriptor_decoder_dim != config.input_dim or config.add_scale_ori:
            raise CheckpointError(
                f"this matcher takes descriptors of {config.input_dim} values"
                f"{' with scales and orientations' if config.add_scale_ori else ''}, and this SuperPoint gives "
                f"{detector.config.descriptor_decoder_dim} without. They do not belong together."
            )
        config = config.replace(keypoint_detector_config=detector.config)
        tensors |= {f"{JOINT_PREFIX}{name}": tensor for name, tensor in detector.state_dict().items()}
    with torch.device("meta"):
        joint = LightGlueForKeypointMatching(config)
    load_strictly(joint, tensors, "matcher and detector together")
    return joint


def _write_transformers(model: PreTrainedModel, folder: Path, place: Source, *, one_source: bool) -> list[Path]:
    model.save_pretrained(folder)
    written = [folder / CONFIG_NAME, folder / WEIGHTS_NAME]
    processor = _PROCESSORS.get(type(model))
    if processor is not None:
        settings = place.find(PREPROCESSOR_NAME)
        if settings is None:
            processor().save_pretrained(folder)
        else:
            _copy(settings, folder / PREPROCESSOR_NAME)
        written.append(folder / PREPROCESSOR_NAME)
    # The card says whose weights these are; of weights from two sources there is none that holds for both.
    card = place.find(_CARD) if one_source else None
    if card is not None:
        _copy(card, folder / _CARD)
        written.append(folder / _CARD)
    return written


def _copy(file: Path, target: Path) -> None:
    if file.resolve() != target.resolve():
        shutil.copyfile(file, target)


def _write_original(model: PreTrainedModel, target: Path, folder: bool) -> list[Path]:
    files: dict[Path, StateDict] = {}
    matcher_file = target / "lightglue.pth" if folder else target
    detector_file = (
        target / "superpoint.pth" if folder else target.with_name(f"{target.stem}_superpoint{target.suffix}")
    )
    if isinstance(model, SuperPointForKeypointDetection):
        files[detector_file if folder else target] = superpoint_to_original(model.state_dict())
    elif isinstance(model, LightGlueMatcher):
        tensors = model.state_dict()
        matcher = {name: tensor for name, tensor in tensors.items() if not name.startswith(JOINT_PREFIX)}
        files[matcher_file] = matcher_to_original(matcher, model.config.num_attention_heads)
        found = {name.removeprefix(JOINT_PREFIX): tensor for name, tensor in tensors.items() if name not in matcher}
        if found:
            files[detector_file] = superpoint_to_original(found)
    # Only now that all of it could be converted.
    if folder:
        if target.is_file():
            raise InputError(f"{target} is a file. Give the name of a folder, or of a file that ends in .pth.")
        target.mkdir(parents=True, exist_ok=True)
    for path, state_dict in files.items():
        write_state_dict(path, state_dict)
    return list(files)
