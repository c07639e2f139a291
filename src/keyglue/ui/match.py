"""``keyglue match``: two images, or many pairs from a text file."""

from __future__ import annotations

import json
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyglue.base.errors import MissingDependencyError
from keyglue.base.files import atomic_path, atomic_write
from keyglue.ui import options
from keyglue.ui.console import print_hint, print_rows
from keyglue.ui.pairs import match_pairs, read_pairs
from keyglue.ui.startup import imports

if TYPE_CHECKING:
    import numpy as np

    from keyglue.pipelines.result import PairResult

_STANDARD_OUTPUT = Path("-")


class Result(str, Enum):
    """What can be written for each pair of a list."""

    npz = "npz"
    json = "json"
    csv = "csv"
    png = "png"


def match(
    image0: Annotated[str | None, typer.Argument(metavar="IMAGE0", help="First image.", show_default=False)] = None,
    image1: Annotated[str | None, typer.Argument(metavar="IMAGE1", help="Second image.", show_default=False)] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Picture of the matches; with --pairs a folder for the results."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for standard output.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write one match a line.")] = None,
    npz_file: Annotated[Path | None, typer.Option("--npz", metavar="FILE", help="Write NumPy arrays.")] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", metavar="FILE", help="Match many pairs: a text file of two paths a line.")
    ] = None,
    write: Annotated[
        list[Result] | None,
        typer.Option(
            "--write", metavar="KIND", help="With --pairs, for each pair: npz (default), json, csv, png; repeatable."
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    model: options.Model = None,
    max_keypoints: options.MaxKeypoints = None,
    resize: options.Resize = None,
    filter_threshold: Annotated[
        float | None,
        typer.Option("--filter-threshold", min=0, max=1, metavar="SCORE", help="Keep matches with a score above this."),
    ] = None,
    equalize: options.Equalize = True,
    mask0: Annotated[
        str | None, typer.Option("--mask0", metavar="FILE", help="Use only keypoints where this image is not black.")
    ] = None,
    mask1: Annotated[str | None, typer.Option("--mask1", metavar="FILE", help="The same for the second image.")] = None,
    rotate: Annotated[
        str,
        typer.Option(
            "--rotate",
            metavar="DEGREES",
            help="Turn of the second image, counter-clockwise; auto finds it where images do not match as they are.",
        ),
    ] = "auto",
    zoom: Annotated[
        str,
        typer.Option(
            "--zoom", metavar="FACTOR", help="How many times larger the first image shows things; auto as above."
        ),
    ] = "auto",
    refine: Annotated[
        bool,
        typer.Option(
            "--refine/--no-refine", help="Move matched points to where the images agree, and drop matches that differ."
        ),
    ] = True,
    homography: Annotated[
        bool | None,
        typer.Option("--homography/--fundamental", help="Geometry that inliers have to obey. Default: fundamental."),
    ] = None,
    device: options.Compute = None,
    dtype: options.Precision = None,
    compile: options.Compile = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the geometry estimation.")] = 0,
) -> None:
    """Match two images, or many pairs of images.

    Prints keypoints, matches, inliers, layers used and milliseconds; writes what is asked for.

    --pairs: two paths a line, relative to the file or to the current folder; # starts a comment, quotes hold spaces.
    Results that are there already are skipped, an image that can't be read is reported and its pairs are left out
    (exit code 1).
    """
    settings = options.given(
        model=model,
        max_keypoints=max_keypoints,
        resize=resize,
        filter_threshold=filter_threshold,
        equalize=equalize,
        device=device,
        dtype=dtype,
        compile=compile,
    )
    turn = _number(rotate, "--rotate", "a number of degrees such as 90")
    factor = _number(zoom, "--zoom", "a number such as 4 or 1/4")
    if pairs is not None:
        single_only = {"IMAGE0": image0, "--json": json_file, "--csv": csv_file, "--npz": npz_file, "--mask0": mask0}
        _refuse({**single_only, "--mask1": mask1}, "cannot be used with --pairs; see --write.")
        if output is None:
            raise typer.BadParameter("--pairs needs a folder for the results.", param_hint="-o")
        suffixes = tuple(f".{kind.value}" for kind in write or [Result.npz])
        how = {"rotate": turn, "zoom": factor, "refine": refine, "seed": seed}
        failures = match_pairs(read_pairs(pairs), output, suffixes, settings, how, overwrite=overwrite)
        raise typer.Exit(1 if failures else 0)
    _refuse({"--write": write, "--overwrite": overwrite}, "is for --pairs.")
    if image0 is None or image1 is None:
        raise typer.BadParameter("give two images, or --pairs FILE.", param_hint="IMAGE0 IMAGE1")
    options.check_target(output, "-o", options.PICTURE_SUFFIXES)
    options.check_target(json_file if json_file != _STANDARD_OUTPUT else None, "--json")
    options.check_target(csv_file, "--csv", (".csv",))
    options.check_target(npz_file, "--npz", (".npz",))

    with imports():
        from keyglue.pipelines import matcher

    mask = (mask0, mask1) if mask0 is not None or mask1 is not None else None
    result = matcher.match(image0, image1, mask=mask, rotate=turn, zoom=factor, refine=refine, seed=seed, **settings)
    inliers, geometry = _inliers(result, homography)
    files = _write(result, inliers, output, json_file, [csv_file, npz_file])
    _print(result, [image0, image1], inliers, geometry, files, error=json_file == _STANDARD_OUTPUT)


def _number(text: str, option: str, wanted: str) -> float | str:
    """Return a number like 4, 0.25 or 1/4, or "auto"."""
    if text == "auto":
        return text
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise typer.BadParameter(f"{wanted}, or auto, got {text!r}.", param_hint=option) from None


def _refuse(arguments: dict[str, Any], reason: str) -> None:
    for name, value in arguments.items():
        if value:
            raise typer.BadParameter(reason, param_hint=name)


def _inliers(result: PairResult, homography: bool | None) -> tuple[np.ndarray | None, str]:
    """Return which matches obey the geometry, and its name; without a library for it only a hint is printed."""
    name = "homography" if homography else "fundamental matrix"
    try:
        geometry = result.homography() if homography else result.fundamental()
    except MissingDependencyError as error:
        if homography is not None:
            raise
        print_hint(f"Inliers are left out: {error}")
        return None, name
    return geometry.inliers, name


def _write(
    result: PairResult,
    inliers: np.ndarray | None,
    picture: Path | None,
    json_file: Path | None,
    tables: list[Path | None],
) -> list[Path]:
    """Write what was asked for and return the files."""
    written: list[Path] = []
    if picture is not None:
        with atomic_path(picture) as temporary:
            result.draw(inliers=inliers).save(temporary)
        written.append(picture)
    if json_file == _STANDARD_OUTPUT:
        typer.echo(json.dumps(result.to_dict()))
    elif json_file is not None:
        atomic_write(json_file, json.dumps(result.to_dict()))
        written.append(json_file)
    for path in tables:
        if path is not None:
            result.save(path)
            written.append(path)
    return written


def _print(
    result: PairResult,
    images: list[str],
    inliers: np.ndarray | None,
    geometry: str,
    files: list[Path],
    *,
    error: bool,
) -> None:
    rows = [
        (f"keypoints of {Path(image).name}", str(len(keypoints)))
        for image, keypoints in zip(images, (result.keypoints0, result.keypoints1), strict=True)
    ]
    rows.append(("matches", str(len(result))))
    if inliers is not None:
        rows.append(("inliers", f"{int(inliers.sum())} ({geometry})"))
    if result.rotation or result.zoom != 1:
        rows.append(("seen turned by", f"{(result.rotation + 180) % 360 - 180:.0f} degrees, zoom {result.zoom:.3g}"))
    rows.append(("layers used", f"{result.stop_layer} of {result.num_layers}"))
    if result.match_probability is not None:
        rows.append(("same scene", f"{result.match_probability:.1%} probable"))
    rows += [(f"{step} ms", f"{value:.0f}") for step, value in result.milliseconds.items()]
    rows += [("written", str(path)) for path in files]
    print_rows(rows, error=error)
