"""What to train on: folders of photographs, tar files, and scenes with ground truth, told apart by what is in them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from keyglue.base.errors import InputError
from keyglue.training.photos import LONG_SIDE, Photos, load_photos
from keyglue.training.scenes import Scene, load_scene


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """Photographs and scenes.

    Attributes:
        photos: Photographs to train on.
        held_out: Photographs to validate on.
        scenes: Scenes to train on.
    """

    photos: Photos
    held_out: Photos
    scenes: list[Scene]


def load_data(
    data: Sequence[str | os.PathLike[str]],
    device: torch.device,
    *,
    long_side: int = LONG_SIDE,
    limit: int | None = None,
) -> TrainingData:
    """Read everything to train on and put the images on the device.

    Args:
        data: Folders of images, tar files, image files, folders with a scene.json and depth, folders with images/ and
            a COLMAP model in sparse/. Where there are scenes only, their frames are the photographs too.
        device: Device of training.
        long_side: Larger images are shrunk to this many pixels.
        limit: Read no more than this many photographs.

    Raises:
        InputError: A path does not exist, nothing usable is there, or a scene cannot be read.
    """
    if not data:
        raise InputError("nothing to train on was given. Give folders of images, .tar files or scenes.")
    scenes: list[Scene] = []
    rest: list[str | os.PathLike[str]] = []
    for place in data:
        scene = load_scene(place, long_side) if Path(place).is_dir() else None
        if scene is None:
            rest.append(place)
        else:
            scene.frames = scene.frames.to(device)
            scenes.append(scene)
    if rest:
        photos = load_photos(rest, long_side=long_side, limit=limit)
    else:
        photos = Photos(
            tuple(name for scene in scenes for name in scene.frames.names),
            tuple(levels for scene in scenes for levels in scene.frames.pyramids),
        )
    train, held_out = photos.to(device).split()
    return TrainingData(train, held_out, scenes)
