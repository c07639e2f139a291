"""Which way up photographs are to each other, so that the model sees all of them the same way up.

Descriptors hold to some 45 degrees of rotation. A drone that flies back and forth, a scanner and a phone that looks
straight down turn by more, and EXIF does not say so. Small copies of the images are described four times, turned by
quarters, and compared: where one turn of an image clearly fits another image best, that is noted, and the surest of
these notes connect the images. In each connected part most images stay as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from keyglue.base.devices import to_device
from keyglue.base.errors import KeyglueError
from keyglue.base.files import atomic_write
from keyglue.images.contrast import with_contrast
from keyglue.images.read import load_pixels
from keyglue.images.resize import resize_image, resized_size
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.ahead import ready_ahead
from keyglue.reconstruction.choose import digest
from keyglue.reconstruction.extract import Masks, Progress, feature_header
from keyglue.reconstruction.overlap import descriptor_overlap, strongest

_TURNS = (0, 90, 180, 270)
_COPY = 480  # long side of the copies
# A turn fits where its overlap score is so high, and so many times that of every other turn.
_LEAST, _CLEARLY = 16, 2.0
# Images are compared with this many of those before them, spread over all, and with this many just before them.
_ANCHORS, _RECENT = 200, 8
# By so many keypoints, the strongest ones.
_KEYPOINTS = 256


@dataclasses.dataclass(frozen=True)
class Fit:
    """How one image has to be turned to be the same way up as another.

    Attributes:
        first: Number of the one that stays.
        second: Number of the one that is turned.
        degrees: How far, counter-clockwise.
        weight: How sure that is: by how much the overlap score of this turn is above that of the next best.
    """

    first: int
    second: int
    degrees: int
    weight: int


def find_turns(
    folder: Path,
    names: Sequence[str],
    matcher: Matcher,
    *,
    kept: Path | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Return how far each image has to be turned counter-clockwise for all to be the same way up: quarter turns.

    Args:
        folder: The images' folder.
        names: Names of the images relative to it. One that cannot be read is not turned.
        matcher: Describes the images.
        kept: JSON file to keep the answer in; it is believed as long as images and settings are the same.
        threads: Number of threads that decode images ahead.
        progress: Called with "turn", the number of images done and that of all.
    """
    key = digest([_stamp(folder, name) for name in names], feature_header(matcher, Masks()))
    if kept is not None:
        with suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found["made_from"] == key:
                return {name: int(found["turns"][name]) for name in names}
    fits: list[Fit] = []
    step = -(-len(names) // _ANCHORS)
    upright: dict[int, Tensor] = {}  # of the anchors and the images just before
    for number, turned in enumerate(_descriptors(folder, names, matcher, threads)):
        compared = (_fit(other, number, descriptors, turned) for other, descriptors in upright.items())
        fits += [fit for fit in compared if fit is not None]
        upright[number] = turned[0]
        if (number - _RECENT) % step:
            upright.pop(number - _RECENT, None)
        if progress is not None:
            progress("turn", number + 1, len(names))
    turns = dict(zip(names, connected_turns(len(names), fits), strict=True))
    if kept is not None:
        atomic_write(kept, json.dumps({"made_from": key, "turns": turns}, indent=1) + "\n")
    return turns


def connected_turns(count: int, fits: Sequence[Fit]) -> list[int]:
    """Return the degrees by which each of ``count`` images is turned, from the surest fits that connect them.

    In each connected part as few images as possible are turned.
    """
    # Each image with its turn as seen from the image that stands for its part.
    parts = {number: {number: 0} for number in range(count)}
    part_of = list(range(count))
    for fit in sorted(fits, key=lambda fit: (-fit.weight, fit.first, fit.second)):
        one, two = part_of[fit.first], part_of[fit.second]
        if one == two:
            continue
        shift = parts[one][fit.first] + fit.degrees - parts[two][fit.second]
        for number, degrees in parts.pop(two).items():
            parts[one][number] = (degrees + shift) % 360
            part_of[number] = one
    turns = [0] * count
    for members in parts.values():
        times = Counter(members.values())
        usual = max(_TURNS, key=lambda degrees: times[degrees])
        for number, degrees in members.items():
            turns[number] = (degrees - usual) % 360
    return turns


def _fit(first: int, second: int, upright: Tensor, turned: Sequence[Tensor]) -> Fit | None:
    """Compare an image as it is with the four turns of another one; None where none of them clearly fits."""
    scores = [descriptor_overlap(upright, descriptors) for descriptors in turned]
    best = max(range(len(scores)), key=scores.__getitem__)
    next_best = max(score for turn, score in enumerate(scores) if turn != best)
    if scores[best] < max(_LEAST, _CLEARLY * next_best):
        return None
    return Fit(first, second, _TURNS[best], scores[best] - next_best)


def _descriptors(folder: Path, names: Sequence[str], matcher: Matcher, threads: int) -> Iterator[list[Tensor]]:
    """Yield of each image the descriptors of its four turns."""
    steps = matcher.processor.steps(do_resize=False)
    nothing = torch.zeros(0, matcher.model.keypoint_detector.config.descriptor_decoder_dim)

    def prepare(name: str) -> Tensor:
        pixels = load_pixels(folder / name, guess_range=False)
        pixels = with_contrast(pixels) if matcher.equalize else pixels
        size = resized_size((pixels.shape[1], pixels.shape[2]), {"longest_edge": _COPY})
        return resize_image(pixels, size, steps.resample)

    for _, ready in ready_ahead(prepare, folder, names, threads):
        try:
            pixels = ready.result()
        except (KeyglueError, OSError):  # whoever describes it will say what is wrong
            yield [nothing] * len(_TURNS)
            continue
        found: list[Tensor] = []
        for degrees in _TURNS:
            seen = steps.apply(torch.rot90(pixels, degrees // 90, (-2, -1)), "channels_first")
            with torch.no_grad():
                features = matcher.model.extract(to_device(seen, matcher.model.device))
            found.append(strongest(features)[:_KEYPOINTS])
        yield found


def _stamp(folder: Path, name: str) -> tuple[str, int, int]:
    try:
        state = (folder / name).stat()
    except OSError:
        return name, 0, 0
    return name, state.st_size, state.st_mtime_ns
