"""The lists of easy and hard pairs in benchmarks/lists, which were made before anything was measured on them.

    python benchmarks/pair_lists.py [DATA]

Overlap is the share of what an image sees that the other one sees too, of the two images the lesser: pixels of a coarse
grid where there is depth, observed points of the model where there is a sparse one. Of each scene and each range of
overlap a list takes as many pairs, drawn by a seeded generator: easy ones overlap by 60 % or more; of the hard ones
half overlap by 5 to 20 %, half by less. Sparse models lose points where the view changes a lot, so that what they call
an overlap of 60 % is at least that, and 20 % may be more.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from keyglue.training.geometry import shared_view
from keyglue.training.scenes import DepthScene, Scene, TrackScene, load_scene

LISTS = Path(__file__).parent / "lists"
DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SCENES = ("multiview/south_building", "multiview/bonsai", "multiview/hololens_room")
# Least and largest overlap, and pairs of each scene.
RANGES = {"easy": [(0.6, 1.0, 8)], "hard": [(0.05, 0.2, 4), (0.0, 0.05, 4)]}


def overlaps(scene: Scene) -> Tensor:
    """Return the overlap (n, n) of each two frames of a scene."""
    if isinstance(scene, TrackScene):
        return _of_tracks(scene)
    if isinstance(scene, DepthScene):
        return _of_depth(scene)
    raise ValueError(f"{scene.name} has neither depth nor tracks.")


def _of_tracks(scene: TrackScene) -> Tensor:
    """Return the share of points of the model that both see, of those of the image that sees more."""
    seen = [set(image.tracks.tolist()) for image in scene.images]
    return torch.tensor([[len(a & b) / max(len(a), len(b), 1) for b in seen] for a in seen])


def _of_depth(scene: DepthScene) -> Tensor:
    count = len(scene.depths)
    found = torch.eye(count)
    matrices = [torch.from_numpy(camera.matrix) for camera in scene.cameras]
    for i in range(count):
        for j in range(i + 1, count):
            R = scene.rotations[j] @ scene.rotations[i].mT
            t = scene.translations[j] - R @ scene.translations[i]
            share = shared_view((scene.depths[i], scene.depths[j]), (matrices[i], matrices[j]), R, t)
            found[i, j] = found[j, i] = share
    return found


def chosen(overlap: Tensor, least: float, most: float, count: int) -> list[tuple[int, int]]:
    """Return ``count`` pairs (i, j), i < j, whose overlap lies in a range, the same ones each time."""
    pairs = ((overlap >= least) & (overlap <= most)).triu(1).nonzero()
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    return sorted((int(i), int(j)) for i, j in pairs[order[:count]])


def read_list(name: str) -> list[tuple[str, str, float]]:
    """Return the images of each pair of a list, relative to the folder of the data, and their overlap."""
    lines = (LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    return [(first, second, float(overlap)) for first, second, overlap in words]


def main(data: Path = DATA) -> None:
    """Make the lists."""
    lines: dict[str, list[str]] = {name: [] for name in RANGES}
    for folder in SCENES:
        scene = load_scene(data / folder)
        if scene is None:
            raise SystemExit(f"{data / folder} holds no scene.")
        overlap = overlaps(scene)
        # A frame's name is SCENE/FILE; those of a sparse model leave the folder of the images out.
        names = [name.removeprefix(f"{scene.name}/").removeprefix("images/") for name in scene.frames.names]
        for name, ranges in RANGES.items():
            for found in ranges:
                for i, j in chosen(overlap, *found):
                    lines[name].append(f"{folder}/images/{names[i]} {folder}/images/{names[j]} {overlap[i, j]:.3f}")
    LISTS.mkdir(exist_ok=True)
    for name, found in lines.items():
        head = f"# Made by benchmarks/pair_lists.py: image 0, image 1, overlap ({name} pairs)."
        (LISTS / f"{name}.txt").write_text("\n".join([head, *found]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
