"""A small reader of COLMAP's sparse models, text and binary: cameras, images, and which points each image sees.

Formats: https://colmap.github.io/format.html. COLMAP puts the centre of the top-left pixel at (0.5, 0.5); everything is
returned with it at (0, 0).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keyglue.base.errors import InputError
from keyglue.multiview.cameras import Camera

Array = NDArray[np.float64]

# Number and name of a camera model -> number of its parameters.
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
}
_NUMBERS = {name: number for number, (name, _) in _MODELS.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class PosedImage:
    """One image of a sparse model.

    Attributes:
        name: File name, relative to the folder of images.
        camera: Its camera.
        R: (3, 3) rotation from world to camera.
        t: (3,) translation: x_camera = R x_world + t.
        points: (T, 2) pixels of the observed points.
        tracks: (T,) number of the point of the model that each observation is of.
    """

    name: str
    camera: Camera
    R: Array
    t: Array
    points: Array
    tracks: NDArray[np.int64]


def model_folder(scene: Path) -> Path | None:
    """Return the folder of a scene's sparse model, sparse/0/ or sparse/; None if it or images/ is not there."""
    if not (scene / "images").is_dir():
        return None
    folders = (scene / "sparse" / "0", scene / "sparse")
    return next((folder for folder in folders if folder.is_dir()), None)


def read_sparse_model(folder: Path) -> list[PosedImage]:
    """Read the images of a sparse model.

    Args:
        folder: With cameras.bin and images.bin, or cameras.txt and images.txt.

    Raises:
        InputError: Files are missing or damaged, or a camera model is not known.
    """
    try:
        if (folder / "images.bin").is_file():
            cameras = _cameras_binary((folder / "cameras.bin").read_bytes())
            images = list(_images_binary((folder / "images.bin").read_bytes(), cameras))
        else:
            cameras = _cameras_text((folder / "cameras.txt").read_text(encoding="utf-8"))
            images = list(_images_text((folder / "images.txt").read_text(encoding="utf-8"), cameras))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is no sparse model of COLMAP: {error.filename} is missing.") from error
    except (struct.error, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the sparse model in {folder} cannot be read: {error}.") from error
    return sorted(images, key=lambda image: image.name)


def _camera(model: int, width: int, height: int, values: tuple[float, ...]) -> Camera:
    """Make a camera from COLMAP's parameters."""
    if model not in _MODELS:
        known = ", ".join(name for name, _ in _MODELS.values())
        raise InputError(f"camera model {model} is not known; known are {known}. Undistort the images with COLMAP.")
    if model in (1, 4):
        (fx, fy, cx, cy), distortion = values[:4], values[4:]
    else:
        fx, cx, cy = values[:3]
        fy, distortion = fx, values[3:]
    # One radial coefficient is the first of two.
    distortion = (*distortion, 0.0) if len(distortion) == 1 else distortion
    return Camera(fx=fx, fy=fy, cx=cx - 0.5, cy=cy - 0.5, distortion=tuple(distortion), width=width, height=height)


def _cameras_binary(data: bytes) -> dict[int, Camera]:
    (count,) = struct.unpack_from("<Q", data)
    offset, cameras = 8, {}
    for _ in range(count):
        identity, model, width, height = struct.unpack_from("<iiQQ", data, offset)
        number = _MODELS[model][1] if model in _MODELS else 0
        cameras[identity] = _camera(model, width, height, struct.unpack_from(f"<{number}d", data, offset + 24))
        offset += 24 + 8 * number
    return cameras


def _images_binary(data: bytes, cameras: dict[int, Camera]) -> Iterator[PosedImage]:
    (count,) = struct.unpack_from("<Q", data)
    offset = 8
    observation = np.dtype([("x", "<f8"), ("y", "<f8"), ("track", "<i8")])
    for _ in range(count):
        _, *pose, camera = struct.unpack_from("<i7di", data, offset)
        offset += 64
        end = data.index(b"\0", offset)
        name = data[offset:end].decode()
        (number,) = struct.unpack_from("<Q", data, end + 1)
        rows = np.frombuffer(data, observation, number, end + 9)
        offset = end + 9 + 24 * number
        yield _image(name, cameras[camera], pose, np.stack([rows["x"], rows["y"]], axis=1), rows["track"])


def _cameras_text(text: str) -> dict[int, Camera]:
    cameras: dict[int, Camera] = {}
    for words in map(str.split, _lines(text)):
        values = tuple(map(float, words[4:]))
        cameras[int(words[0])] = _camera(_NUMBERS.get(words[1], -1), int(words[2]), int(words[3]), values)
    return cameras


def _images_text(text: str, cameras: dict[int, Camera]) -> Iterator[PosedImage]:
    # Two lines an image; the second, its observations, may be empty.
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for head, body in zip(lines[::2], [*lines[1::2], ""], strict=False):
        words = head.split(maxsplit=9)
        if len(words) < 10:
            continue
        values = np.array(body.split(), dtype=np.float64).reshape(-1, 3)
        pose = [float(word) for word in words[1:8]]
        yield _image(words[9], cameras[int(words[8])], pose, values[:, :2], values[:, 2].astype(np.int64))


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _image(name: str, camera: Camera, pose: list[float], points: Array, tracks: NDArray[np.int64]) -> PosedImage:
    w, x, y, z = np.array(pose[:4]) / np.linalg.norm(pose[:4])
    R = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    seen = tracks >= 0
    return PosedImage(name, camera, R, np.array(pose[4:7]), points[seen] - 0.5, tracks[seen])
