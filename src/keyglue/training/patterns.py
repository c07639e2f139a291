"""Pictures that repeat themselves, of photographs and of letters: brickwork, tiles, rows of windows, printed pages.

Among photographs they are rare, and a matcher that has seen few of them takes what looks alike for what has no match.
Here a piece of a photograph is laid out in rows; each copy differs a little, as bricks do, by a piece of its own that
is mixed in, and by its brightness. A page has columns of words in one size, often the same ones, and sometimes a
photograph.

Shapes: h w pixels, R rows of C tiles.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from keyglue.training.photos import Photos

_SIZE = (480, 640)
_LETTERS = "eeeeetttaaaooiinnsshhrrddllcumwfgypbvkjxqzETAOINSHRDLCU0123456789.,;:-()"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatternSettings:
    """What the pictures are like.

    Attributes:
        count: How many are made; views are drawn of these.
        pages: Share of them that are printed pages.
        tile: Smallest and largest height and width of a tile in pixels.
        own: Smallest and largest share that a tile's own piece has in it.
        gain: Standard deviation of the tiles' contrast, whose mean is 1.
        brightness: Standard deviation of the tiles' brightness, of 255.
        joint: Largest width of the gaps between tiles in pixels.
        shade: How much darker or lighter parts of the whole picture are at most.
        letters: Smallest and largest size of letters in pixels.
    """

    count: int = 400
    pages: float = 0.4
    tile: tuple[int, int] = (16, 112)
    own: tuple[float, float] = (0.05, 0.8)
    gain: float = 0.15
    brightness: float = 12.0
    joint: int = 5
    shade: float = 0.3
    letters: tuple[int, int] = (9, 36)


def make_patterns(photos: Photos, settings: PatternSettings, generator: torch.Generator) -> Photos:
    """Make pictures that repeat themselves.

    Args:
        photos: Photographs that tiles are cut from; the pictures lie on their device.
        settings: What the pictures are like.
        generator: Source of randomness, on the CPU.
    """
    kinds = (torch.rand(settings.count, generator=generator) < settings.pages).tolist()
    pictures = [(_page if is_page else _pattern)(photos, settings, generator) for is_page in kinds]
    return Photos.of_images([f"pattern{number}" for number in range(settings.count)], pictures)


def _pattern(photos: Photos, settings: PatternSettings, generator: torch.Generator) -> Tensor:
    """Return one picture (h, w), values 0 to 255."""
    device = photos.device
    height, width = (_integer(settings.tile, generator) for _ in range(2))
    rows, columns = -(-_SIZE[0] // height), -(-_SIZE[1] // width) + 1

    def numbers(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def normal(deviation: float) -> Tensor:
        return (deviation * torch.randn(rows, columns, generator=generator)).to(device)

    # Rows lie as bricks do, straight, or anyhow.
    bond = _integer((0, 2), generator)
    shifts = (torch.zeros(rows), 0.5 * (torch.arange(rows) % 2), numbers(rows))[bond]
    y = torch.arange(_SIZE[0], device=device)[:, None]
    row, down = y // height, y % height
    x = torch.arange(_SIZE[1], device=device) + (shifts * width).long().to(device)[row]
    column, across = x // width, x % width

    tile = _piece(photos, (height, width), generator)
    source = photos.pyramids[_integer((0, len(photos) - 1), generator)][0].float()
    limits = torch.tensor([max(source.shape[0] - height, 0), max(source.shape[1] - width, 0)])
    corners = (numbers(rows, columns, 2) * (limits + 1)).long().to(device)
    top, left = corners[row, column].unbind(-1)
    own = source[(top + down).clamp(max=source.shape[0] - 1), (left + across).clamp(max=source.shape[1] - 1)]

    low, high = settings.own
    share = low + (high - low) * float(numbers(1))
    mixed = (1 - share) * tile[down.expand_as(across), across] + share * own
    mixed = (1 + normal(settings.gain))[row, column] * mixed + normal(settings.brightness)[row, column]
    joint = min(_integer((0, settings.joint), generator), height // 4, width // 4)
    mixed = torch.where((down < joint) | (across < joint), 255 * float(numbers(1)), mixed)
    return _shaded(mixed, settings, generator)


def _page(photos: Photos, settings: PatternSettings, generator: torch.Generator) -> Tensor:
    """Return one printed page (h, w), values 0 to 255."""

    def number(low: int, high: int) -> int:
        return _integer((low, high), generator)

    paper, ink = number(170, 255), number(0, 90)
    if number(0, 4) == 0:
        paper, ink = ink, paper
    page = Image.new("L", (_SIZE[1], _SIZE[0]), paper)
    draw = ImageDraw.Draw(page)
    size = number(*settings.letters)
    font = ImageFont.load_default(size)
    words = [
        "".join(_LETTERS[number(0, len(_LETTERS) - 1)] for _ in range(number(1, 10))) for _ in range(number(20, 200))
    ]
    lengths = [draw.textlength(f"{word} ", font) for word in words]
    columns = number(1, 3)
    width, gap, line = _SIZE[1] // columns, number(8, 30), int(size * (1.2 + 0.1 * number(0, 6)))
    for column in range(columns):
        left, top = column * width + gap, gap
        while top < _SIZE[0] - line:
            text, room = "", number(width // 3, width) if number(0, 6) == 0 else width - 2 * gap
            while room > 0:
                chosen = int(len(words) * float(torch.rand(1, generator=generator)) ** 2)
                text, room = f"{text}{words[chosen]} ", room - lengths[chosen]
            draw.text((left, top), text, ink, font)
            top += line * (2 if number(0, 9) == 0 else 1)
        if columns > 1 and number(0, 1):
            draw.line((column * width, gap, column * width, _SIZE[0] - gap), ink, number(1, 2))
    drawn = torch.from_numpy(np.array(page)).float().to(photos.device)
    if number(0, 2) == 0:
        extent = number(80, 240), number(80, 320)
        top, left = number(0, _SIZE[0] - extent[0]), number(0, _SIZE[1] - extent[1])
        drawn[top : top + extent[0], left : left + extent[1]] = _piece(photos, extent, generator)
    return _shaded(drawn, settings, generator)


def _shaded(picture: Tensor, settings: PatternSettings, generator: torch.Generator) -> Tensor:
    """Return a picture (h, w) with parts darker and lighter than others."""
    shade = 1 + settings.shade * (2 * torch.rand((1, 1, 3, 4), generator=generator) - 1)
    spread = F.interpolate(shade.to(picture), _SIZE, mode="bicubic", align_corners=True)[0, 0]
    return (picture * spread).clamp(0, 255)


def _piece(photos: Photos, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return a piece (height, width) of a photograph, at any of its scales from its own to a fourth."""
    photo = photos.pyramids[_integer((0, len(photos) - 1), generator)][0]
    scale = 1 + 3 * float(torch.rand(1, generator=generator))
    extent = [min(round(scale * wanted), available) for wanted, available in zip(size, photo.shape, strict=True)]
    top, left = (_integer((0, photo.shape[axis] - extent[axis]), generator) for axis in (0, 1))
    piece = photo[top : top + extent[0], left : left + extent[1]].float()[None, None]
    return F.interpolate(piece, size, mode="bilinear", antialias=True)[0, 0]


def _integer(bounds: tuple[int, int], generator: torch.Generator) -> int:
    """Draw a whole number, both bounds included."""
    return int(torch.randint(bounds[0], bounds[1] + 1, (), generator=generator))
