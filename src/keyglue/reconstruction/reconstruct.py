"""A folder of photographs to a model, in stages that each leave a file and go on where they were stopped.

features.h5 -> pairs.txt -> matches.h5 -> database.db -> sparse/, points.ply, model.png, summary.json
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keyglue.base.errors import InputError
from keyglue.base.files import atomic_path, atomic_write
from keyglue.pipelines.matcher import Matcher
from keyglue.reconstruction.choose import PairOptions, choose_pairs, digest
from keyglue.reconstruction.colmap import (
    MapOptions,
    ModelSummary,
    build_model,
    read_model,
    summarize,
    write_database,
    write_ply,
)
from keyglue.reconstruction.executor import DeviceExecutor, Executor, SerialExecutor
from keyglue.reconstruction.extract import Masks, Progress, extract_images, find_images
from keyglue.reconstruction.lock import locked
from keyglue.reconstruction.match import match_images
from keyglue.reconstruction.overlap import LEAST_OVERLAP
from keyglue.reconstruction.pairs import Pairs
from keyglue.reconstruction.refine import RefineOptions, refine_model
from keyglue.reconstruction.show import draw_model
from keyglue.reconstruction.store import FeatureStore, MatchStore
from keyglue.reconstruction.times import StageTimes
from keyglue.reconstruction.turns import find_turns
from keyglue.reconstruction.verify import VerifyOptions, import_pycolmap, pixel_scale

_SAMPLE = 16
_MADE_FROM = "sparse/made_from"  # of the output folder: a digest of what its model was made from


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructOptions:
    """Settings of ``reconstruct``.

    Attributes:
        model: As for ``Matcher.from_pretrained``.
        max_keypoints: Largest number of keypoints an image; -1 for all.
        resize: Longest edge of what the model sees; 0 for full size.
        equalize: As for ``Matcher.from_pretrained``.
        devices: Where to compute: one process for each; none named for this process and the best device there is.
        dtype: Floating point type to compute in.
        compile: As for ``Matcher.from_pretrained``.
        masks: Which pixels may hold keypoints.
        find_turns: Whether the images may be turned to each other: how far is then found out first.
        max_tile: Larger images are described in tiles of this many pixels on a side.
        threads: Number of threads that decode images ahead.
        memory: Bytes of features that are kept in memory while matching.
        pairs: Which pairs are matched.
        min_overlap: Pairs with a smaller ``overlap_score`` are not given to the matcher; 0 for all.
        verify: Settings of the geometric verification.
        mapping: Settings of the mapping.
    """

    model: str | None = None
    max_keypoints: int = 2048
    resize: int = 1280
    equalize: bool = True
    devices: tuple[str, ...] = ()
    dtype: str | None = None
    compile: bool | str = False
    masks: Masks = dataclasses.field(default_factory=Masks)
    find_turns: bool = False
    max_tile: int = 1280
    threads: int = 2
    memory: int = 1 << 30
    pairs: PairOptions = dataclasses.field(default_factory=PairOptions)
    min_overlap: int = LEAST_OVERLAP
    verify: VerifyOptions = dataclasses.field(default_factory=VerifyOptions)
    mapping: MapOptions = dataclasses.field(default_factory=MapOptions)

    def matcher(self) -> Matcher:
        """Load the model with these settings."""
        device = self.devices[0] if len(self.devices) == 1 else "cpu" if self.devices else None
        loaded = Matcher.from_pretrained(
            self.model,
            device=device,
            dtype=self.dtype,
            compile=self.compile,
            max_keypoints=self.max_keypoints,
            resize=self.resize or None,
            equalize=self.equalize,
        )
        if not self.resize:
            loaded.processor.do_resize = False
        return loaded

    def executor(self) -> Executor:
        """Return what runs the stages' work."""
        return DeviceExecutor(self.devices) if len(self.devices) > 1 else SerialExecutor()


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What ``reconstruct`` made.

    Attributes:
        folder: Where the files are.
        summary: Numbers of the largest model.
        models: Number of models that have no image in common.
        pairs: Number of pairs.
        failed: Images and pairs that were left out, with the reason.
        seconds: Time of each stage, in all runs that made what is there.
    """

    folder: Path
    summary: ModelSummary
    models: int
    pairs: int
    failed: dict[str, str]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **dataclasses.asdict(self.summary),
            "models": self.models,
            "pairs": self.pairs,
            "failed": self.failed,
            "seconds": self.seconds,
        }


def reconstruct(
    images: Path, output: Path, options: ReconstructOptions | None = None, progress: Progress | None = None
) -> Reconstruction:
    """Make a 3D model from a folder of photographs.

    What is in the output folder already is used again as far as it is still right.

    Args:
        images: Folder of the photographs; folders in it are searched too.
        output: Folder for everything that is made; made where it is not there.
        options: Settings.
        progress: Called with the name of a stage, the number of things done and that of all.

    Raises:
        InputError: There are no images, or fewer than two can be read.
        StoreError: A store in the folder was made with other settings, is damaged, or is in use.
        KeyglueError: No model came about.
        MissingDependencyError: pycolmap or h5py is not installed.
    """
    chosen = options or ReconstructOptions()
    import_pycolmap()  # before hours of work, not after them
    names = find_images(images)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        features, matches, pair_list = output / "features.h5", output / "matches.h5", output / "pairs.txt"
        matcher, executor, times = chosen.matcher(), chosen.executor(), StageTimes(output / "times.json")
        turns: dict[str, int] = {}
        if chosen.find_turns:
            with times.of("turn") as work:
                before = _state(output / "turns.json")
                turns = find_turns(
                    images, names, matcher, kept=output / "turns.json", threads=chosen.threads, progress=progress
                )
                work.done = before != _state(output / "turns.json")
        with times.of("extract") as work:
            described = extract_images(
                images,
                names,
                features,
                matcher,
                masks=chosen.masks,
                max_tile=chosen.max_tile,
                threads=chosen.threads,
                turns=turns,
                executor=executor,
                progress=progress,
            )
            work.done, work.kept = described.done, described.kept
        names = [name for name in names if name not in described.failed]
        if len(names) < 2:
            raise InputError(f"{images} has {len(names)} image that can be read; a model takes at least two.")
        with times.of("pairs") as work:
            before = _state(pair_list)
            pairs = choose_pairs(features, names, chosen.pairs, pair_list, progress)
            work.done = before != _state(pair_list)
        with times.of("match") as work:
            matched = match_images(
                pairs,
                names,
                features,
                matches,
                matcher,
                verify=chosen.verify,
                min_overlap=chosen.min_overlap,
                memory=chosen.memory,
                executor=executor,
                progress=progress,
            )
            work.done, work.kept = matched.done, matched.kept
        with times.of("map") as work:
            before = _state(output / _MADE_FROM)
            summary, count = map_images(images, names, pairs, features, matches, output, chosen.mapping, progress)
            work.done = before != _state(output / _MADE_FROM)
        failed = {**described.failed, **matched.failed}
        found = Reconstruction(output, summary, count, len(pairs), failed, times.seconds)
        atomic_write(output / "summary.json", json.dumps(found.to_dict(), indent=2) + "\n")
    return found


def map_images(
    images: Path,
    names: Sequence[str],
    pairs: Pairs,
    features: Path,
    matches: Path,
    output: Path,
    options: MapOptions,
    progress: Progress | None = None,
) -> tuple[ModelSummary, int]:
    """Map matched images: write database.db, sparse/, points.ply and model.png into a folder.

    Nothing is done where the folder holds the model of the same features, matches and settings.

    Args:
        images: Folder of the images.
        names: The images.
        pairs: The pairs that were matched.
        features: Store of the features.
        matches: Store of the matches.
        output: Folder to write to.
        options: Settings.
        progress: As for ``reconstruct``.

    Returns:
        Numbers of the largest model, and the number of models.

    Raises:
        KeyglueError: No model came about.
    """
    mark, scale = output / _MADE_FROM, 1.0
    with FeatureStore(features) as described, MatchStore(matches) as matched:
        stamps = [described.digest(name) for name in names]
        key = digest(names, stamps, pairs.tolist(), matched.header, dataclasses.asdict(options))
        if not (mark.is_file() and mark.read_text(encoding="utf-8") == key):
            write_database(output / "database.db", names, pairs, described, matched, options)
            some = names[:: max(1, len(names) // _SAMPLE)]
            scale = max(pixel_scale(described.load(name)) for name in some)
    if not (mark.is_file() and mark.read_text(encoding="utf-8") == key):
        for folder in build_model(output / "database.db", images, output / "sparse", options, scale):
            if options.refine:
                _refine(folder, images, features, options, progress)
        model = read_model(output)
        write_ply(model, output / "points.ply")
        with atomic_path(output / "model.png") as temporary:
            draw_model(model).save(temporary)
        atomic_write(mark, key)
    count = sum(1 for folder in (output / "sparse").iterdir() if folder.is_dir())
    return summarize(read_model(output), len(names)), count


def _refine(folder: Path, images: Path, features: Path, options: MapOptions, progress: Progress | None) -> None:
    model = read_model(folder)
    with FeatureStore(features) as store:
        orientations = {image.name: store.record(image.name).orientation for image in model.images.values()}
    keep, settings = options.camera_params is not None, RefineOptions(principal_point=options.principal_point)
    refine_model(model, images, orientations, settings, keep_cameras=keep, progress=progress)
    model.write_binary(folder)


def _state(path: Path) -> tuple[int, int] | None:
    """Return what tells one version of a file from the next, None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino
