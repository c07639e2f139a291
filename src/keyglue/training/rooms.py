"""Rooms and streets made up at random: boxes and walls with photographs on them, with exact depth and poses.

What is nearer hides what is further away, walls repeat their pictures, and floors are seen at a slant: all that
homographies of single photographs cannot show.

A picture is a rectangle in space with a photograph on it. In a view its pixels follow from one matrix A: with p a pixel
(x, y, 1), A p = (u / z, v / z, 1 / z), where (u, v) is the pixel of the photograph and z the depth.

Shapes: Q rectangles, V views, h w pixels. Frame: the world has x right, y down and z forward, in metres, the floor at
y = 0; cameras look along their z axis.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from keyglue.images.coordinates import pixel_grid
from keyglue.training.geometry import shared_view
from keyglue.training.photos import Photos

_NEAREST = 0.05
_SIDES = (
    # Origin and two edges of the faces of a unit box, u to the right and v down where seen from outside.
    ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    ((1.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    ((0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoomSettings:
    """What rooms and their views are like.

    Attributes:
        streets: Share of them that have an open sky and one long wall instead of four and a ceiling.
        boxes: Fewest and most boxes that stand about.
        field_of_view: Smallest and largest horizontal field of view in degrees.
        max_roll: Cameras are turned about their axis by up to this many degrees either way.
        spread: How far apart cameras stand, as a share of the distance to what they look at.
    """

    streets: float = 0.4
    boxes: tuple[int, int] = (3, 7)
    field_of_view: tuple[float, float] = (45.0, 80.0)
    max_roll: float = 20.0
    spread: float = 0.9


@dataclasses.dataclass(frozen=True)
class Rectangles:
    """Pictures in space.

    Attributes:
        origin: (Q, 3) float64 corner where the centre of the photograph's pixel (0, 0) lies, in metres.
        across: (Q, 3) step from one pixel of the photograph to the next one to the right.
        down: (Q, 3) step from one pixel to the one below it.
        extent: (Q, 2) width and height in such steps; beyond the photograph's size it is repeated, mirrored.
        photo: Photograph of each.
    """

    origin: Tensor
    across: Tensor
    down: Tensor
    extent: Tensor
    photo: list[int]


@dataclasses.dataclass(frozen=True)
class RoomViews:
    """What cameras see of a room.

    Attributes:
        images: (V, 1, h, w) float32 from 0 to 1, on the photographs' device.
        depths: (V, h, w) float32 depth along the cameras' axes in metres, 0 where there is nothing.
        K: (V, 3, 3) float64 camera matrices.
        R: (V, 3, 3) float64 rotations, x_camera = R x_world + t.
        t: (V, 3) float64 translations in metres.
    """

    images: Tensor
    depths: Tensor
    K: Tensor
    R: Tensor
    t: Tensor

    def motion(self, first: int, second: int) -> tuple[Tensor, Tensor]:
        """Return rotation and translation from one camera to another."""
        R = self.R[second] @ self.R[first].mT
        return R, self.t[second] - R @ self.t[first]

    def overlap(self, first: int, second: int) -> float:
        """Return the share of what one camera sees that the other one sees too, whichever is less."""
        R, t = (value.to(self.depths.device) for value in self.motion(first, second))
        K0, K1 = (self.K[view].to(self.depths.device) for view in (first, second))
        return shared_view((self.depths[first], self.depths[second]), (K0, K1), R, t)


def random_room(
    photos: Photos, views: int, size: tuple[int, int], settings: RoomSettings, generator: torch.Generator
) -> RoomViews:
    """Make up a room and look at it.

    Args:
        photos: What hangs on the walls.
        views: Number V of cameras; all look at about the same place.
        size: Height and width of the views.
        settings: What rooms are like.
        generator: Source of randomness, on the CPU.
    """
    draw = _Draw(generator)
    street = draw.between(0, 1) < settings.streets
    width, length = draw.between(8, 20) if street else draw.between(3, 8), draw.between(4, 9)
    height = draw.between(4, 12) if street else draw.between(2.4, 4)
    boxes: list[tuple[Tensor, Tensor, float]] = []
    for _ in range(int(draw.between(settings.boxes[0], settings.boxes[1] + 1))):
        sides = torch.tensor([draw.between(0.2, 0.2 * width), draw.between(0.2, 0.6 * height), draw.between(0.2, 1.5)])
        place = torch.tensor([draw.between(0.05, 0.95) * width, 0.0, draw.between(0.45, 0.97) * length])
        boxes.append((place.double(), sides.double(), draw.between(0, math.pi)))
    rectangles = _furnish(photos, (width, height, length), street, boxes, draw)
    K, R, t = _cameras((width, height, length), street, boxes, views, size, settings, draw)
    images, depths = render(photos, rectangles, K, R, t, size, sky=draw.between(0.3, 1.0))
    return RoomViews(images, depths, K, R, t)


def render(
    photos: Photos, rectangles: Rectangles, K: Tensor, R: Tensor, t: Tensor, size: tuple[int, int], *, sky: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return what cameras see of rectangles.

    Args:
        photos: The photographs on the rectangles.
        rectangles: The pictures in space.
        K: (V, 3, 3) camera matrices.
        R: (V, 3, 3) rotations, x_camera = R x_world + t.
        t: (V, 3) translations in metres.
        size: Height and width of the views.
        sky: Gray value from 0 to 1 where there is nothing.

    Returns:
        Images (V, 1, h, w) from 0 to 1 and depths (V, h, w) in metres, 0 where there is nothing.
    """
    device = photos.device
    pixels = F.pad(pixel_grid(size, device), (0, 1), value=1.0)
    images = torch.full((len(K), 1, *size), sky, device=device)
    depths = torch.zeros(len(K), *size, device=device)
    for view in range(len(K)):
        axes = torch.stack([rectangles.across, rectangles.down, rectangles.origin], dim=-1)
        axes = R[view] @ axes
        axes[:, :, 2] += t[view]
        facing = torch.linalg.det(K[view] @ axes).abs() > 1e-12
        A = torch.zeros_like(axes)
        A[facing] = torch.linalg.inv(K[view] @ axes[facing])
        nearest, which, place = _first_hits(pixels, A.to(device, torch.float32), rectangles.extent.to(device))
        depths[view] = torch.where(nearest > 0, 1 / nearest.clamp(min=1e-6), 0.0).reshape(size)
        # Pixels of the photograph for one of the view: the root of the determinant of the map between them.
        spread = torch.linalg.det(A).abs().to(device, torch.float32)[which] / nearest.clamp(min=1e-6) ** 3
        level = (0.5 * torch.log2(spread.clamp(min=1e-6))).round().clamp(0, len(photos.pyramids[0]) - 1).long()
        level[nearest <= 0] = -1
        flat = images[view].view(-1)
        # One number for rectangle and level; counting them is far quicker than torch.unique.
        levels = len(photos.pyramids[0]) + 1
        code = which * levels + level + 1
        for found in torch.bincount(code).nonzero().squeeze(1).tolist():
            number, step = found // levels, found % levels - 1
            if step >= 0:
                chosen = (code == found).nonzero().squeeze(1)
                flat[chosen] = _sample(
                    photos.pyramids[rectangles.photo[number]][step], (place[chosen] + 0.5) * 0.5**step - 0.5
                )
    return images, depths


def _first_hits(pixels: Tensor, A: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each pixel (P, 3) the inverse depth (P,) of the first rectangle, its number, and the place on it.

    The inverse depth is 0 where there is none.
    """
    mapped = pixels @ A.mT
    inverse = mapped[..., 2].clamp(min=1e-9)
    u, v = mapped[..., 0] / inverse, mapped[..., 1] / inverse
    inside = (u >= 0) & (v >= 0) & (u <= extent[:, :1]) & (v <= extent[:, 1:])
    inside &= (mapped[..., 2] > 1e-3) & (mapped[..., 2] < 1 / _NEAREST)
    nearest, which = torch.where(inside, mapped[..., 2], 0.0).max(dim=0)
    rows = which[None]
    return nearest, which, torch.stack([u.gather(0, rows)[0], v.gather(0, rows)[0]], dim=1)


def _sample(level: Tensor, place: Tensor) -> Tensor:
    """Return values (P,) from 0 to 1 of a photograph (h, w) at places (P, 2), mirrored beyond its edges."""
    last = place.new_tensor([level.shape[1] - 1, level.shape[0] - 1]).clamp(min=1)
    turn = place.clamp(min=0) % (2 * last)
    normalised = torch.minimum(turn, 2 * last - turn) / last * 2 - 1
    values = level[None, None].float() / 255
    return F.grid_sample(values, normalised[None, None], mode="bilinear", align_corners=True)[0, 0, 0]


class _Draw:
    """Random numbers of a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def between(self, low: float, high: float) -> float:
        """Return a number, evenly distributed."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def below(self, count: int) -> int:
        """Return an index below ``count``."""
        return int(torch.randint(count, (), generator=self.generator))


def _furnish(
    photos: Photos,
    room: tuple[float, float, float],
    street: bool,
    boxes: list[tuple[Tensor, Tensor, float]],
    draw: _Draw,
) -> Rectangles:
    """Hang photographs on walls, floor and boxes."""
    width, height, length = room
    top = -height
    # Each face: a corner and its two edges. The far wall and the floor, then what a closed room has besides.
    faces = [
        ((0, top, length), (width, 0, 0), (0, height, 0)),
        ((0, 0, length), (width, 0, 0), (0, 0, -length)),
    ]
    if not street:
        faces += [
            ((0, top, 0), (0, 0, length), (0, height, 0)),
            ((width, top, length), (0, 0, -length), (0, height, 0)),
            ((width, top, 0), (-width, 0, 0), (0, height, 0)),
            ((0, top, 0), (width, 0, 0), (0, 0, length)),
        ]
    corners = [torch.tensor(face, dtype=torch.float64) for face in faces]
    for place, sides, angle in boxes:
        cosine, sine = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]], dtype=torch.float64)
        base = torch.tensor([-0.5, -1.0, -0.5], dtype=torch.float64)
        for face in _SIDES:
            origin, across, down = torch.tensor(face, dtype=torch.float64)
            edges = torch.stack([(base + origin) * sides, across * sides, down * sides]) @ turn.T
            corners.append(edges + torch.stack([place, torch.zeros(3), torch.zeros(3)]))
    stacked = torch.stack(corners)
    photo = [draw.below(len(photos)) for _ in corners]
    extents: list[list[float]] = []
    for face, number in zip(corners, photo, strict=True):
        rows, columns = photos.pyramids[number][0].shape
        # Repeats across so that the photograph is not distorted, up to three times.
        repeats = draw.between(0.6, 1.0) if draw.between(0, 1) < 0.7 else draw.between(1.0, 3.0)
        across, down = face[1].norm(), face[2].norm()
        wide = repeats * (columns - 1)
        extents.append([wide, min(float(wide * down / across), 4.0 * (rows - 1))])
    extent = torch.tensor(extents, dtype=torch.float64)
    return Rectangles(stacked[:, 0], stacked[:, 1] / extent[:, :1], stacked[:, 2] / extent[:, 1:], extent, photo)


def _cameras(
    room: tuple[float, float, float],
    street: bool,
    boxes: list[tuple[Tensor, Tensor, float]],
    views: int,
    size: tuple[int, int],
    settings: RoomSettings,
    draw: _Draw,
) -> tuple[Tensor, Tensor, Tensor]:
    """Put up cameras that look at about the same place, none of them inside a box."""
    width, height, length = room
    eye = min(height, 4.0)
    target = torch.tensor(
        [draw.between(0.2, 0.8) * width, -draw.between(0.2, 0.8) * eye, draw.between(0.7, 1.0) * length]
    )
    back = draw.between(1.0, 8.0) if street else 0.0
    centre = torch.tensor(
        [draw.between(0.2, 0.8) * width, -draw.between(0.3, 0.8) * eye, draw.between(0.05, 0.3) * length]
    )
    centre[2] -= back
    reach = settings.spread * float((target - centre).norm())
    K, R, t = (torch.zeros(views, *shape, dtype=torch.float64) for shape in ((3, 3), (3, 3), (3,)))
    focal = 0.5 * size[1] / math.tan(math.radians(draw.between(*settings.field_of_view)) / 2)
    for view in range(views):
        place = centre
        for _ in range(20):
            shift = torch.tensor([draw.between(-0.5, 0.5), draw.between(-0.15, 0.15), draw.between(-0.4, 0.4)]) * reach
            place = centre + shift
            low = [0.1, -eye, 0.1 - back] if not street else [-width, -eye, -2 - back]
            high = [width - 0.1, -0.1, 0.8 * length] if not street else [2 * width, -0.1, 0.6 * length]
            place = torch.minimum(torch.maximum(place, torch.tensor(low)), torch.tensor(high))
            if not any(_inside(place, box) for box in boxes):
                break
        gaze = torch.tensor([draw.between(-1, 1), draw.between(-1, 1), draw.between(-1, 1)]) * 0.15 * reach
        R[view] = _looking(target + gaze - place, math.radians(draw.between(-settings.max_roll, settings.max_roll)))
        t[view] = -R[view] @ place.double()
        f = focal * draw.between(0.85, 1.2)
        K[view] = torch.tensor([[f, 0, (size[1] - 1) / 2], [0, f, (size[0] - 1) / 2], [0, 0, 1]])
    return K, R, t


def _inside(place: Tensor, box: tuple[Tensor, Tensor, float]) -> bool:
    """Tell whether a place is within or near a box, taken as upright cylinder."""
    centre, sides, _ = box
    flat = (place.double() - centre)[[0, 2]].norm()
    return bool(flat < 0.5 * sides[[0, 2]].norm() + 0.15) and bool(-place[1] < sides[1] + 0.15)


def _looking(direction: Tensor, roll: float) -> Tensor:
    """Return the rotation (3, 3) from the world to a camera that looks along a direction and is rolled about it."""
    forward = F.normalize(direction.double(), dim=0)
    right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), forward), dim=0)
    upright = torch.stack([right, torch.linalg.cross(forward, right), forward])
    cosine, sine = math.cos(roll), math.sin(roll)
    return torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], dtype=torch.float64) @ upright
