"""The stages of ``keyglue reconstruct`` as verbs of their own: ``features``, ``pairs``, ``matches``, ``map``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyglue.ui import options
from keyglue.ui import reconstruct as shared
from keyglue.ui.console import print_error, print_rows

if TYPE_CHECKING:
    from keyglue.reconstruction.extract import StageReport

FeatureFile = Annotated[Path, typer.Argument(metavar="FEATURES", help="Store of features.", show_default=False)]


def features(
    images: shared.Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 file to write or to continue.")],
    model: options.Model = None,
    max_keypoints: shared.Keypoints = 2048,
    resize: shared.Resize = 1280,
    equalize: options.Equalize = True,
    masks: shared.MaskFolder = None,
    mask_colour: shared.MaskColour = None,
    find_turns: shared.FindTurns = False,
    max_tile: shared.MaxTile = 1280,
    threads: shared.Threads = 2,
    device: shared.Devices = None,
    dtype: options.Precision = None,
    compile: options.Compile = None,
) -> None:
    """Describe a folder of images into one HDF5 file, which hloc reads too."""
    from keyglue.reconstruction.extract import extract_images, find_images
    from keyglue.reconstruction.reconstruct import ReconstructOptions
    from keyglue.reconstruction.turns import find_turns as find

    settings = ReconstructOptions(
        model=model,
        max_keypoints=max_keypoints,
        resize=resize,
        equalize=equalize,
        devices=tuple(device or ()),
        dtype=dtype,
        compile=compile or False,
    )
    with shared.progress_bars() as progress:
        names, matcher = find_images(images), settings.matcher()
        kept = output.with_suffix(".turns.json")
        turns = find(images, names, matcher, kept=kept, threads=threads, progress=progress) if find_turns else None
        report = extract_images(
            images,
            names,
            output,
            matcher,
            masks=shared.read_masks(masks, mask_colour),
            max_tile=max_tile,
            threads=threads,
            turns=turns,
            executor=settings.executor(),
            progress=progress,
        )
    _print_report(report, "images described", output)


def pairs(
    features: FeatureFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="Text file of two names a line.")],
    choice: shared.Choice = shared.PairChoice.auto,
    neighbours: shared.Neighbours = 20,
    overlap: shared.Overlap = 10,
    max_distance: Annotated[
        float | None, typer.Option("--max-distance", metavar="METRES", help="Largest distance by GPS.")
    ] = None,
    poses: Annotated[
        Path | None, typer.Option("--poses", metavar="MODEL", help="Nearest cameras of a COLMAP model instead.")
    ] = None,
) -> None:
    """Choose which images to match with which."""
    from keyglue.reconstruction.choose import PairOptions, choose_pairs, pairs_by_poses
    from keyglue.reconstruction.store import FeatureStore

    with FeatureStore(features) as store:
        names = store.names()
    if poses is not None:
        found = pairs_by_poses(poses, names, neighbours, output)
    else:
        distance = options.given(max_distance=max_distance)
        settings = PairOptions(choice=choice.value, neighbours=neighbours, overlap=overlap, **distance)
        with shared.progress_bars() as progress:
            found = choose_pairs(features, names, settings, output, progress)
    print_rows([("images", str(len(names))), ("pairs", str(len(found))), ("written to", str(output))])


def matches(
    features: FeatureFile,
    pairs: Annotated[Path, typer.Argument(metavar="PAIRS", help="Text file of two names a line.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 file to write or to continue.")],
    model: options.Model = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Find out which matches are inliers.")] = True,
    min_overlap: shared.MinOverlap = None,
    memory: shared.Memory = 1024,
    device: shared.Devices = None,
    dtype: options.Precision = None,
    compile: options.Compile = None,
) -> None:
    """Match pairs of described images into one HDF5 file, which hloc reads too."""
    from keyglue.reconstruction.match import match_images
    from keyglue.reconstruction.overlap import LEAST_OVERLAP
    from keyglue.reconstruction.pairs import read_pairs
    from keyglue.reconstruction.reconstruct import ReconstructOptions
    from keyglue.reconstruction.store import FeatureStore
    from keyglue.reconstruction.verify import VerifyOptions

    settings = ReconstructOptions(model=model, devices=tuple(device or ()), dtype=dtype, compile=compile or False)
    with FeatureStore(features) as store:
        names = store.names()
    wanted = read_pairs(pairs, names)
    with shared.progress_bars() as progress:
        report = match_images(
            wanted,
            names,
            features,
            output,
            settings.matcher(),
            verify=VerifyOptions() if verify else None,
            min_overlap=LEAST_OVERLAP if min_overlap is None else min_overlap,
            memory=memory << 20,
            executor=settings.executor(),
            progress=progress,
        )
    _print_report(report, "pairs matched", output)


def map_(
    images: shared.Images,
    features: FeatureFile,
    matches: Annotated[Path, typer.Argument(metavar="MATCHES", help="Store of matches.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model; made where needed.")],
    mapper: shared.MapperOption = shared.Mapper.incremental,
    cameras: shared.SharingOption = shared.Sharing.auto,
    camera_model: shared.CameraModel = "SIMPLE_RADIAL",
    camera_params: shared.CameraParams = None,
    refine: shared.Refine = True,
    principal_point: shared.PrincipalPoint = False,
) -> None:
    """Build a COLMAP database and a 3D model from matched images."""
    from keyglue.reconstruction.colmap import MapOptions
    from keyglue.reconstruction.pairs import indices_of
    from keyglue.reconstruction.reconstruct import map_images
    from keyglue.reconstruction.store import FeatureStore, MatchStore

    output.mkdir(parents=True, exist_ok=True)
    with FeatureStore(features) as described, MatchStore(matches) as matched:
        names = described.names()
        found = indices_of(matched.pairs(names), names)
    settings = MapOptions(
        mapper=mapper.value,
        cameras=cameras.value,
        camera_model=camera_model,
        camera_params=shared.read_numbers(camera_params),
        refine=refine,
        principal_point=principal_point,
    )
    with shared.progress_bars() as progress:
        summary, count = map_images(images, names, found, features, matches, output, settings, progress)
    print_rows([*shared.summary_rows(summary), ("models", str(count)), ("written to", str(output))])


def _print_report(report: StageReport, done: str, output: Path) -> None:
    for name, reason in report.failed.items():
        print_error(f"{name}: {reason}")
    print_rows(
        [
            (done, str(report.done)),
            ("there already", str(report.kept)),
            ("failed", str(len(report.failed))),
            ("time", f"{report.seconds:.1f} s"),
            ("written to", str(output)),
        ]
    )
    raise typer.Exit(1 if report.failed else 0)
