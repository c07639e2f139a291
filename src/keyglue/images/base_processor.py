"""What the image processors share: their settings, the way from an image to the pixels of a model, and files."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from keyglue.base.config import read_json
from keyglue.base.errors import ConfigError, InputError
from keyglue.base.files import atomic_write
from keyglue.base.hub import Source, upload_folder
from keyglue.images.arrays import Array, as_numpy, channels_first, find_layout, from_channels_first
from keyglue.images.batch import BatchFeature, make_batch, output_layout
from keyglue.images.enums import resolve_channel_dimension, resolve_resampling
from keyglue.images.read import ImageInput, load_pixels
from keyglue.images.resize import check_target, resize_image, resized_size, to_grayscale

PREPROCESSOR_NAME = "preprocessor_config.json"
# Arguments of other libraries' from_pretrained that choose an implementation, of which there is one here.
_IGNORED_WHEN_LOADING = ("trust_remote_code", "use_fast", "backend", "_from_auto")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """What is done to every image, checked: resize, rescale, gray, in this order."""

    do_resize: bool
    size: dict[str, int]
    resample: Any
    do_rescale: bool
    rescale_factor: float
    do_grayscale: bool

    def __post_init__(self) -> None:
        for name in ("do_resize", "do_rescale", "do_grayscale"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise InputError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        object.__setattr__(self, "size", check_target(self.size))
        object.__setattr__(self, "resample", resolve_resampling(self.resample))
        factor = self.rescale_factor
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"rescale_factor must be a positive number, got {factor!r}.")

    def apply(self, image: ImageInput, input_data_format: Any) -> Tensor:
        """Return an image as the model wants it: (3, h, w) float32."""
        pixels = load_pixels(image, input_data_format=input_data_format, guess_range=False)
        if self.do_resize:
            pixels = resize_image(pixels, resized_size(pixels.shape[1:], self.size), self.resample)
        if self.do_rescale:
            # In float64 as other implementations do it, so that the last bit is the same.
            pixels = pixels.double() * self.rescale_factor
        pixels = pixels.float()
        if self.do_grayscale:
            pixels = to_grayscale(pixels)
        return pixels.expand(3, -1, -1).contiguous()

    def seen_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return height and width that an image of ``size`` has when the model sees it."""
        return resized_size(size, self.size) if self.do_resize else (int(size[0]), int(size[1]))


class BaseImageProcessor:
    """Settings of a processor as attributes, and the loading and saving of them.

    Args:
        do_resize: Whether to resize images.
        size: Size to give them, as ``keyglue.images.resize.resized_size`` takes it; 480 x 640 unless given.
        resample: Filter, as Pillow's enum, name or number.
        do_rescale: Whether to multiply pixel values by ``rescale_factor``.
        rescale_factor: The factor.
        do_grayscale: Whether to make images gray.
        **kwargs: Settings of other libraries, kept for writing back.

    Raises:
        InputError: A setting has an impossible value.
        ConfigError: A keyword is nearly the name of a setting.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]
    _settings: ClassVar[tuple[str, ...]] = tuple(field.name for field in dataclasses.fields(Steps))

    def __init__(
        self,
        do_resize: bool = True,
        size: Mapping[str, int] | None = None,
        resample: Any = 2,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_grayscale: bool = True,
        **kwargs: Any,
    ) -> None:
        self.do_resize = do_resize
        self.size = {"height": 480, "width": 640} if size is None else size
        self.resample = 2 if resample is None else resample
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_grayscale = do_grayscale
        for name in kwargs:
            close = difflib.get_close_matches(name, self._settings, n=1, cutoff=0.88)
            if close:
                raise ConfigError(f"{type(self).__name__} has no setting {name!r}. Did you mean {close[0]!r}?")
        self.extra = {name: value for name, value in kwargs.items() if name != "image_processor_type"}
        steps = self.steps()
        self.size, self.resample = steps.size, steps.resample

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Prepare images for the model; see ``preprocess``."""
        return self.preprocess(images, **kwargs)

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: Mapping[str, int] | None = None,
        resample: Any = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_grayscale: bool | None = None,
        return_tensors: Any = None,
        data_format: Any = "channels_first",
        input_data_format: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Turn images into pixel values.

        Files and Pillow images are turned upright as their EXIF orientation says; transparent pixels become black.
        Images whose sizes differ after resizing are padded with zeros to the right and bottom.

        Args:
            images: For LightGlue a pair [image0, image1] or a list of pairs, for SuperPoint an image or a list of
                images. An image is a Pillow image, an array or tensor (h, w), (h, w, C) or (C, h, w) with C = 1, 3 or
                4, a path or a URL. Pixel values are 0..255 (uint16: 0..65535); for floats in 0..1 pass
                ``do_rescale=False``.
            do_resize: Whether to resize; the processor's own setting unless given, as for the five that follow.
            size: Size to give the images.
            resample: Filter to resize with.
            do_rescale: Whether to multiply pixel values by ``rescale_factor``.
            rescale_factor: The factor.
            do_grayscale: Whether to make images gray.
            return_tensors: "pt", "np", "tf" or "jax", as text or enum; unset for a list of NumPy arrays.
            data_format: "channels_first" or "channels_last" for the pixel values; None for that of the first image.
            input_data_format: "channels_first", "channels_last" or "none" for arrays; found from their shape unless
                given.
            **kwargs: Refused unless it switches something off.

        Returns:
            ``pixel_values`` float32, (B, 2, 3, h, w) for pairs and (B, 3, h, w) for single images; and where images
            were padded ``image_sizes`` int64, (B, 2, 2) or (B, 2), height and width of their contents. With
            ``return_tensors`` unset, lists of B arrays; padding is then only within a pair.

        Raises:
            InputError: The images are not pairs where they should be, or an argument has an impossible value.
            ImageError: An image cannot be read, or holds NaN or negative values.
        """
        _refuse_unknown(kwargs)
        steps = self.steps(
            do_resize=do_resize,
            size=size,
            resample=resample,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            do_grayscale=do_grayscale,
        )
        groups = self._groups(images)
        layout = output_layout(data_format, groups[0][0], input_data_format)
        processed = [[steps.apply(image, input_data_format) for image in group] for group in groups]
        return make_batch(processed, layout, return_tensors)

    def _groups(self, images: Any) -> list[tuple[ImageInput, ...]]:
        """Return what the user gave as a list of pairs, or of single images; at least one."""
        raise NotImplementedError

    def resize(
        self,
        image: Array,
        size: Mapping[str, int],
        data_format: Any = None,
        input_data_format: Any = None,
        *,
        resample: Any = None,
    ) -> Array:
        """Resize an image.

        Args:
            image: (h, w), (h, w, C) or (C, h, w) array of numbers, C = 1, 3 or 4.
            size: Size to give it, as the constructor takes it.
            data_format: Layout of the result, "channels_first", "channels_last" or "none"; that of the input unless
                given.
            input_data_format: Layout of the input; found from its shape unless given.
            resample: Filter; the processor's own unless given.

        Returns:
            The resized array, of the type of the input.

        Raises:
            InputError: The array is not one image, or an argument is impossible.
        """
        array = as_numpy(image)
        layout = find_layout(array.shape, input_data_format)
        wanted = layout if data_format is None else resolve_channel_dimension(data_format)
        values = channels_first(array, layout)
        whole = values.dtype.kind in "bui"
        pixels = torch.from_numpy(
            np.array(values, dtype=np.uint8 if values.dtype == np.uint8 else np.float32, order="C")
        )
        target = resized_size(pixels.shape[1:], check_target(size))
        resized = resize_image(pixels, target, self.resample if resample is None else resample).numpy()
        return from_channels_first((np.rint(resized) if whole else resized).astype(array.dtype), wanted)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values as written to preprocessor_config.json, foreign keys included."""
        steps = self.steps()
        own = {name: getattr(steps, name) for name in self._settings}
        own["resample"] = int(steps.resample)
        return {**self.extra, **own, "image_processor_type": type(self).__name__}

    def to_json_string(self) -> str:
        """Return the JSON text of ``to_dict``."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Self:
        """Build a processor from the content of a preprocessor_config.json.

        Args:
            image_processor_dict: Parsed JSON object. Unknown keys are kept for writing back.
            **kwargs: Values that replace those of the dictionary.
        """
        return cls(**{**image_processor_dict, **kwargs})

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str] | None = None, **kwargs: Any) -> Self:
        """Load the processor of a bundled model, a local folder or a Hub id.

        Args:
            name_or_path: As for the models' ``from_pretrained``, or the path of a preprocessor_config.json.
            **kwargs: ``revision``, ``cache_dir``, ``local_files_only``, ``token``, ``force_download`` and ``subfolder``
                choose where to look; everything else replaces a setting.

        Raises:
            CheckpointError: The model is not there or has no preprocessor_config.json.
            ConfigError: The file is not a JSON object.
        """
        source, overrides = Source.split(name_or_path, kwargs)
        overrides = {key: value for key, value in overrides.items() if key not in _IGNORED_WHEN_LOADING}
        file = source.single_file
        if file is None:
            return cls.from_dict(read_json(source.file(PREPROCESSOR_NAME)), **overrides)
        # A checkpoint that comes as a single file has no settings of its own.
        return cls.from_dict(read_json(file) if file.suffix == ".json" else {}, **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write preprocessor_config.json into a folder, which is made if it is not there."""
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"cannot save to {folder}: it is a file. Give the name of a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / PREPROCESSOR_NAME, self.to_json_string())

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, token: str | None = None, commit_message: str = "Upload processor"
    ) -> str:
        """Save the processor to the Hub and return the address of the commit; see the models' ``push_to_hub``."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(Path(folder), repo_id, private=private, token=token, message=commit_message)

    def steps(self, **overrides: Any) -> Steps:
        """Return the settings of one call: those given there, else the processor's own."""
        values = {name: getattr(self, name) for name in self._settings}
        return Steps(**{**values, **{name: value for name, value in overrides.items() if value is not None}})


def _refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    """Raise ``InputError`` for keywords that ask for what a processor does not do; switching it off is fine."""
    asked = [name for name, value in kwargs.items() if value not in (None, False) and name != "do_convert_rgb"]
    if asked:
        accepted = ", ".join(field.name for field in dataclasses.fields(Steps))
        raise InputError(
            f"unknown argument {asked[0]!r}. A processor takes {accepted}, return_tensors, data_format and "
            "input_data_format."
        )
