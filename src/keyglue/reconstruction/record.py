"""What is noted of an image file: its size, how the camera held it, its lens and place, and a stamp of its content."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

from PIL import Image
from typing_extensions import Self

from keyglue.base.errors import ImageError
from keyglue.images.read import image_size

_ORIENTATION, _MAKE, _MODEL = 0x0112, 0x010F, 0x0110
_EXIF, _GPS = 0x8769, 0x8825
_FOCAL_LENGTH, _FOCAL_35MM = 0x920A, 0xA405
_PLANE_RESOLUTION, _PLANE_UNIT = 0xA20E, 0xA210
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
_DIAGONAL_35MM = math.hypot(36, 24)
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """Facts about an image file that later stages need without opening it again.

    Attributes:
        size: Height and width, upright.
        orientation: EXIF orientation 1 to 8 of the file; keypoints refer to the upright image all the same.
        focal_length: In pixels, from EXIF; None where EXIF does not say.
        camera: Maker, model and focal length from EXIF; images of one camera share it. Empty where EXIF is silent.
        gps: Latitude and longitude in degrees and altitude in metres, from EXIF.
        file_size: Bytes.
        modified_ns: Time of the last change.
        digest: Of the file's content.
        mask: Digest of the mask's file, empty where there is none.
        turn: Degrees by which the upright image was turned counter-clockwise for the model: a multiple of 90.
    """

    size: tuple[int, int]
    orientation: int = 1
    focal_length: float | None = None
    camera: str = ""
    gps: tuple[float, float, float] | None = None
    file_size: int = 0
    modified_ns: int = 0
    digest: str = ""
    mask: str = ""
    turn: int = 0

    @classmethod
    def of(cls, path: Path, mask: Path | None = None) -> Self:
        """Read an image file's header and stamp its content.

        Args:
            path: The image.
            mask: File of its mask, if it has one.

        Raises:
            ImageError: It is not an image or cannot be read.
        """
        size = image_size(path)
        try:
            exif = _read_exif(path)
            digest = _digest(path)
            mask_digest = "" if mask is None else _digest(mask)
            state = path.stat()
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error}") from error
        orientation = exif.get(_ORIENTATION, 1)
        focal, millimetres = _focal_length(exif, size)
        names = [str(exif.get(tag, "")).strip("\0 ") for tag in (_MAKE, _MODEL)]
        camera = " ".join([*names, f"{millimetres:g} mm"]) if any(names) and millimetres else ""
        return cls(
            size=size,
            orientation=orientation if orientation in range(1, 9) else 1,
            focal_length=focal,
            camera=camera,
            gps=_gps(exif.get(_GPS, {})),
            file_size=state.st_size,
            modified_ns=state.st_mtime_ns,
            digest=digest,
            mask=mask_digest,
        )

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the picture as the file holds it, before it is turned upright."""
        height, width = self.size
        return (width, height) if self.orientation > 4 else self.size

    def still_holds(self, path: Path, mask: Path | None = None) -> bool:
        """Tell whether image and mask are still what was described; the image's time alone may have changed."""
        try:
            state = path.stat()
            if state.st_size != self.file_size or self.mask != ("" if mask is None else _digest(mask)):
                return False
            return state.st_mtime_ns == self.modified_ns or _digest(path) == self.digest
        except OSError:
            return False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the record of ``to_dict``'s values, others are left alone."""
        known = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        known["size"] = tuple(known["size"])
        known["gps"] = None if known.get("gps") is None else tuple(known["gps"])
        return cls(**known)


def _digest(path: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _read_exif(path: Path) -> dict[int, Any]:
    """Return the tags of an image file; damaged EXIF data is no reason to refuse a good picture."""
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            return {**exif, **exif.get_ifd(_EXIF), _GPS: exif.get_ifd(_GPS)}
    except Exception:
        return {}


def _focal_length(exif: dict[int, Any], size: tuple[int, int]) -> tuple[float | None, float]:
    """Return the focal length in pixels, None where unknown, and in millimetres, 0 where unknown."""
    millimetres = _number(exif.get(_FOCAL_LENGTH))
    equivalent = _number(exif.get(_FOCAL_35MM))
    if equivalent > 0:
        return equivalent * math.hypot(*size) / _DIAGONAL_35MM, millimetres or equivalent
    resolution = _number(exif.get(_PLANE_RESOLUTION))
    unit = _UNIT_MM.get(exif.get(_PLANE_UNIT, 2), 25.4)
    if millimetres > 0 and resolution > 0:
        # Copies that were made smaller keep the resolution of the full image, and mostly its size too.
        full = max(_number(exif.get(_PIXEL_WIDTH)), _number(exif.get(_PIXEL_HEIGHT))) or max(size)
        pixels = millimetres * resolution / unit * max(size) / full
        if 0.2 < pixels / max(size) < 20:  # what no lens has is not believed
            return pixels, millimetres
    return None, millimetres


def _gps(tags: dict[int, Any]) -> tuple[float, float, float] | None:
    try:
        latitude = _degrees(tags[2]) * (-1 if str(tags.get(1, "N")).upper().startswith("S") else 1)
        longitude = _degrees(tags[4]) * (-1 if str(tags.get(3, "E")).upper().startswith("W") else 1)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    below = tags.get(5) in (1, b"\x01")
    altitude = _number(tags.get(6)) * (-1 if below else 1)
    found = (latitude, longitude, altitude)
    return found if all(map(math.isfinite, found)) and abs(latitude) <= 90 else None


def _degrees(parts: Any) -> float:
    degrees, minutes, seconds = (float(part) for part in parts)
    return degrees + minutes / 60 + seconds / 3600


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0
