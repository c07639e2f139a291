"""Pictures for people: matches side by side, keypoints, and where points were pruned. Drawn with Pillow alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keyglue.base.errors import InputError
from keyglue.images.canvas import INLIER, OUTLIER, PLAIN, TEXT, Canvas, Points, ramp, to_points, to_values
from keyglue.images.read import ImageInput


def draw_matches(
    image0: ImageInput,
    image1: ImageInput,
    points0: Points,
    points1: Points,
    scores: Any = None,
    inliers: Any = None,
    *,
    keypoints0: Points | None = None,
    keypoints1: Points | None = None,
    title: str | None = None,
    max_lines: int | None = None,
) -> Image.Image:
    """Draw two images side by side with a line for every match.

    The images are shown muted and at one height, 320 to 1200 pixels, with lines that let each other shine through the
    more there are. They are green for inliers and red for outliers where ``inliers`` is given, else they go from violet
    (score 0) to yellow (score 1) where ``scores`` is given; the best lie on top.

    Args:
        image0: First image, of any kind that ``read_image`` takes.
        image1: Second image.
        points0: (S, 2) matched points in pixels of the first image.
        points1: (S, 2) their partners in pixels of the second image.
        scores: (S,) scores in 0..1.
        inliers: (S,) true where a match agrees with the geometry.
        keypoints0: (M, 2) all keypoints of the first image, drawn faintly.
        keypoints1: (N, 2) all keypoints of the second image.
        title: Text above the images.
        max_lines: Draw no more than this many: the best, or without scores ones evenly picked.

    Returns:
        An RGB picture.

    Raises:
        InputError: The numbers of points, scores and inliers differ, or points are not finite.
        ImageError: An image cannot be read.
    """
    first, second = to_points(points0, "points0"), to_points(points1, "points1")
    count = len(first)
    if len(second) != count:
        raise InputError(f"points0 holds {count} points and points1 {len(second)}; a match has one in each.")
    values = None if scores is None else to_values(scores, count, "scores")
    good = None if inliers is None else to_values(inliers, count, "inliers") != 0
    canvas = Canvas([image0, image1], title)
    for image, keypoints in enumerate((keypoints0, keypoints1)):
        if keypoints is not None:
            for point in canvas.place(image, to_points(keypoints, f"keypoints{image}")):
                canvas.dot(point, 1.1, TEXT, 0.35)
    order = _drawing_order(count, values, good, max_lines)
    colours = _match_colours(count, values, good)
    starts, ends = canvas.place(0, first), canvas.place(1, second)
    drawn_good = len(order) if good is None else int(good[order].sum())
    strong, weak = _opacity(drawn_good), min(0.6, _opacity(len(order) - drawn_good))
    for match in order:
        canvas.line(starts[match], ends[match], colours[match], strong if good is None or good[match] else weak)
    for match in order:
        canvas.dot(starts[match], 1.6, colours[match], 1.0, rim=0.6)
        canvas.dot(ends[match], 1.6, colours[match], 1.0, rim=0.6)
    _label_matches(canvas, count, len(order), values, good)
    return canvas.finish()


def draw_keypoints(
    image: ImageInput, keypoints: Points, scores: Any = None, *, title: str | None = None
) -> Image.Image:
    """Draw an image with a dot at every keypoint.

    Args:
        image: The image, of any kind that ``read_image`` takes.
        keypoints: (N, 2) pixels of the image.
        scores: (N,) detection scores; dots go from violet (the lowest) to yellow (the highest) by their rank.
        title: Text above the image.

    Returns:
        An RGB picture.

    Raises:
        InputError: There is not one score for each point, or points are not finite.
        ImageError: The image cannot be read.
    """
    points = to_points(keypoints, "keypoints")
    canvas = Canvas([image], title)
    colours, order = [PLAIN] * len(points), np.arange(len(points))
    if scores is not None:
        # Detection scores crowd near zero; their ranks spread the colours evenly.
        order = np.argsort(to_values(scores, len(points), "scores"), kind="stable")
        for colour, point in zip(ramp(np.linspace(0, 1, len(points))), order, strict=True):
            colours[point] = colour
        canvas.legend_text("strongest")
        canvas.legend_ramp()
        canvas.legend_text("weakest")
    placed = canvas.place(0, points)
    for index in order:
        canvas.dot(placed[index], 2.0, colours[index], 0.95, rim=0.6)
    canvas.caption(_plural(len(points), "keypoint"))
    return canvas.finish()


def draw_pruning(
    image0: ImageInput,
    image1: ImageInput,
    keypoints0: Points,
    keypoints1: Points,
    prune0: Any,
    prune1: Any,
    num_layers: int,
    *,
    title: str | None = None,
) -> Image.Image:
    """Draw two images side by side with their keypoints, coloured by the layer after which the matcher dropped them.

    Args:
        image0: First image, of any kind that ``read_image`` takes.
        image1: Second image.
        keypoints0: (M, 2) keypoints in pixels of the first image.
        keypoints1: (N, 2) keypoints in pixels of the second image.
        prune0: (M,) number of layers that each keypoint was processed in.
        prune1: (N,) the same for the second image.
        num_layers: Number of layers that the pair ran through; points processed in all of them were kept.
        title: Text above the images.

    Returns:
        An RGB picture.

    Raises:
        InputError: There is not one layer for each point, or points are not finite.
        ImageError: An image cannot be read.
    """
    if num_layers < 1:
        raise InputError(f"num_layers must be at least 1, got {num_layers}.")
    canvas = Canvas([image0, image1], title)
    kept_colour, dropped_colours = ramp([1.0])[0], ramp(np.linspace(0, 0.7, max(1, num_layers - 1)))
    kept = total = 0
    for image, (keypoints, prune) in enumerate(((keypoints0, prune0), (keypoints1, prune1))):
        points = canvas.place(image, to_points(keypoints, f"keypoints{image}"))
        layers = to_values(prune, len(points), f"prune{image}").astype(int)
        for index in np.argsort(layers, kind="stable"):
            if layers[index] < num_layers:
                canvas.dot(points[index], 1.7, dropped_colours[max(0, layers[index] - 1)], 0.9, rim=0.4)
            else:
                canvas.dot(points[index], 2.4, kept_colour, 1.0, rim=0.8)
        kept, total = kept + int((layers >= num_layers).sum()), total + len(points)
    canvas.legend_text("kept")
    canvas.legend_dot(kept_colour)
    for layer in range(num_layers - 1, 0, -1):
        canvas.legend_text(str(layer))
        canvas.legend_dot(dropped_colours[layer - 1])
    if num_layers > 1:
        canvas.legend_text("dropped after layer")
    canvas.caption(f"{kept} of {_plural(total, 'keypoint')} kept through {_plural(num_layers, 'layer')}")
    return canvas.finish()


def _drawing_order(
    count: int, scores: NDArray[Any] | None, inliers: NDArray[Any] | None, max_lines: int | None
) -> NDArray[np.int64]:
    """Return the indices of the matches to draw, the best last so that they lie on top."""
    if scores is None:
        wanted = count if max_lines is None else min(count, max(0, max_lines))
        order = np.linspace(0, max(0, count - 1), wanted).round().astype(np.int64)
    else:
        order = np.argsort(scores, kind="stable")
        order = order if max_lines is None else order[max(0, count - max(0, max_lines)) :]
    return order if inliers is None else order[np.argsort(inliers[order], kind="stable")]


def _opacity(lines: int) -> float:
    """Return how opaque lines are: a few are drawn boldly, many let each other and the image shine through."""
    return float(np.clip(0.9 * (60 / max(1, lines)) ** 0.65, 0.08, 0.9))


def _match_colours(count: int, scores: NDArray[Any] | None, inliers: NDArray[Any] | None) -> list[tuple[int, int, int]]:
    if inliers is not None:
        return [INLIER if good else OUTLIER for good in inliers]
    return [PLAIN] * count if scores is None else ramp(scores)


def _label_matches(
    canvas: Canvas, count: int, drawn: int, scores: NDArray[Any] | None, inliers: NDArray[Any] | None
) -> None:
    canvas.caption(_plural(count, "match", "matches") + (f", {drawn} drawn" if drawn < count else ""))
    if inliers is not None:
        good = int(inliers.sum())
        for text, colour in ((_plural(count - good, "outlier"), OUTLIER), (_plural(good, "inlier"), INLIER)):
            canvas.legend_text(text)
            canvas.legend_dot(colour)
    elif scores is not None:
        canvas.legend_text("1")
        canvas.legend_ramp()
        canvas.legend_text("score 0")


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
