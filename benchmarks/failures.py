"""Pictures for the model card of where the bundled weights fail: green is right within 3 pixels, red is wrong.

Run ``python benchmarks/failures.py --out docs/pictures``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import keyglue

ASSETS = Path(__file__).parents[1] / "assets"
WIDTH = 900
Array = NDArray[np.float64]


def zoomed() -> tuple[Image.Image, Image.Image, Callable[[Array], Array]]:
    """A photograph and its middle, ten times as large."""
    image = Image.open(ASSETS / "astronaut.png").convert("RGB")
    size, left, top = image.width // 10, 230, 90
    part = image.crop((left, top, left + size, top + size)).resize(image.size, Image.Resampling.BICUBIC)
    scale = image.width / size
    return image, part, lambda p: (p + 0.5 - [left, top]) * scale - 0.5


def night() -> tuple[Image.Image, Image.Image, Callable[[Array], Array]]:
    """The stereo pair, the right picture as if taken in the dark: a hundredth of the light, and noise."""
    left, right = (Image.open(ASSETS / f"motorcycle_{side}.png").convert("RGB") for side in ("left", "right"))
    generator = np.random.default_rng(0)
    dark = np.asarray(right, dtype=np.float64) / 100 + generator.normal(0, 0.7, (*right.size[::-1], 1))
    dark = (50 * dark.clip(0, 5)).round().astype(np.uint8)
    disparity = np.load(ASSETS / "motorcycle_disparity.npz")["disparity"]

    def forward(points: Array) -> Array:
        x, y = points.round().astype(int).T
        return points - np.stack([disparity[y, x], np.zeros(len(points))], 1)

    return left, Image.fromarray(dark), forward


def main() -> None:
    """Match each pair and write its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for case in (night, zoomed):
        first, second, forward = case()
        result = keyglue.match(first, second)
        error = np.linalg.norm(forward(result.points0) - result.points1, axis=1)
        right = error < 3
        picture = result.draw(right)
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
        picture.save(out / f"failure_{case.__name__}.jpg", quality=85)
        known = np.isfinite(error).sum()
        print(f"{case.__name__}: {len(result)} matches, {right.sum()} of {known} within 3 px")  # noqa: T201


if __name__ == "__main__":
    main()
