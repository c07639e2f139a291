"""Sets of pairs with homographies: Oxford affine, homogr, HPatches in their published layouts, and own lists."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from keyglue.base.errors import InputError
from keyglue.scoring.pairs import HomographyTruth, PairSet, Picture, ScoredPair, read_matrix

# Left out by all published evaluations because their images are too large for some of the methods compared.
HPATCHES_LEFT_OUT = (
    "i_contruction",
    "i_crownnight",
    "i_dc",
    "i_pencils",
    "i_whitebuilding",
    "v_artisans",
    "v_astronautis",
    "v_talent",
)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".webp")
_COLUMNS = [f"h{row}{column}" for row in (1, 2, 3) for column in (1, 2, 3)]


def oxford_affine(folder: Path) -> PairSet:
    """Read the Oxford affine sets: SCENE/img1 .. imgN and SCENE/H1toNp, which maps img1 to imgN.

    Args:
        folder: Holds one folder a scene, or is itself one.

    Raises:
        InputError: A file is missing or there are no scenes.
    """
    pairs: list[ScoredPair] = []
    for scene in [folder, *_folders(folder)]:
        for file in sorted(scene.glob("H1to*p")):
            number = file.name[len("H1to") : -len("p")]
            pairs.append(
                ScoredPair(
                    name=f"{scene.name}/1-{number}",
                    image0=Picture.of_file(_image(scene, "img1"), folder),
                    image1=Picture.of_file(_image(scene, f"img{number}"), folder),
                    truth=HomographyTruth(H=read_matrix(file)),
                    group=scene.name,
                )
            )
    _require(pairs, folder, "SCENE/H1to2p and SCENE/img1.jpg")
    return PairSet(name="oxford_affine", pairs=pairs, rule="Image 1 with each other image of every scene.")


def homogr(folder: Path) -> PairSet:
    """Read the homogr set: NAME + A and NAME + B are the images, NAME_H_1to2.txt maps A to B.

    Args:
        folder: Holds all files.

    Raises:
        InputError: A file is missing or there are no pairs.
    """
    ending = "_H_1to2.txt"
    pairs: list[ScoredPair] = []
    for file in sorted(folder.glob(f"*{ending}")):
        name = file.name[: -len(ending)]
        pairs.append(
            ScoredPair(
                name=name,
                image0=Picture.of_file(_image(folder, f"{name}A"), folder),
                image1=Picture.of_file(_image(folder, f"{name}B"), folder),
                truth=HomographyTruth(H=read_matrix(file)),
            )
        )
    _require(pairs, folder, f"NAME{ending}, NAMEA.jpg and NAMEB.jpg")
    return PairSet(name="homogr", pairs=pairs, rule="All pairs of the set.")


def hpatches(folder: Path) -> PairSet:
    """Read HPatches sequences: i_NAME (illumination) and v_NAME (viewpoint), each with 1.ppm .. 6.ppm, H_1_2 .. H_1_6.

    Args:
        folder: Holds the sequences (``hpatches-sequences-release``).

    Raises:
        InputError: A file is missing or there are no sequences.
    """
    kinds = {"i_": "illumination", "v_": "viewpoint"}
    pairs: list[ScoredPair] = []
    for scene in _folders(folder):
        if scene.name[:2] not in kinds or scene.name in HPATCHES_LEFT_OUT:
            continue
        pairs += [
            ScoredPair(
                name=f"{scene.name}/1-{number}",
                image0=Picture.of_file(scene / "1.ppm", folder),
                image1=Picture.of_file(scene / f"{number}.ppm", folder),
                truth=HomographyTruth(H=read_matrix(scene / f"H_1_{number}")),
                group=kinds[scene.name[:2]],
            )
            for number in range(2, 7)
        ]
    _require(pairs, folder, "i_NAME/1.ppm, i_NAME/H_1_2, v_NAME/1.ppm and so on")
    rule = "Image 1 with images 2 to 6 of every sequence; the eight that published evaluations leave out are left out."
    return PairSet(name="hpatches", pairs=pairs, rule=rule, reference={"shortest_edge": 480})


def homographies(folder: Path) -> PairSet:
    """Read an own list of pairs with homographies: pairs.json or pairs.csv; docs/scoring.md describes both.

    Args:
        folder: The folder of the list, or the list itself; its paths are relative to its folder.

    Raises:
        InputError: There is no list, an entry is incomplete, or a file is missing.
    """
    found = [folder] if folder.is_file() else [folder / name for name in ("pairs.json", "pairs.csv")]
    files = [file for file in found if file.is_file()]
    if len(files) != 1:
        raise InputError(f"{folder} must hold either pairs.json or pairs.csv, and holds {len(files)} of them.")
    entries = _from_csv(files[0]) if files[0].suffix.lower() == ".csv" else _from_json(files[0])
    root = files[0].parent
    pairs: list[ScoredPair] = []
    for number, entry in enumerate(entries, start=1):
        missing = [key for key in ("image0", "image1", "H") if key not in entry]
        if missing:
            raise InputError(f"{files[0]}, pair {number}: {', '.join(missing)} is missing.")
        name = entry.get("name") or f"{entry['image0']} {entry['image1']}"
        pairs.append(
            ScoredPair(
                name=str(name),
                image0=Picture.of_file(root / str(entry["image0"]), root),
                image1=Picture.of_file(root / str(entry["image1"]), root),
                truth=HomographyTruth(H=entry["H"]),
                group=str(entry.get("group") or ""),
            )
        )
    return PairSet(name="homographies", pairs=pairs, rule=f"All pairs of {files[0].name}.")


def _from_json(file: Path) -> list[Any]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file} must hold a list of objects, one a pair.")
    return entries


def _from_csv(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows, start=1):
        try:
            row["H"] = np.array([float(row[column]) for column in _COLUMNS]).reshape(3, 3)  # pyright: ignore[reportArgumentType]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}, pair {number}: columns h11 to h33 must hold numbers ({error}).") from error
    return rows


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _image(folder: Path, stem: str) -> Path:
    """Return the image of a name whatever its suffix; the first suffix where there is none, for the message."""
    candidates = [folder / f"{stem}{suffix}" for suffix in _IMAGE_SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _require(pairs: list[ScoredPair], folder: Path, layout: str) -> None:
    if not pairs:
        raise InputError(f"{folder} holds no pairs. Expected in it: {layout}.")
