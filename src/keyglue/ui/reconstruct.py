"""``keyglue reconstruct``, ``keyglue show``, and what the verbs of single stages share with them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyglue.base.files import atomic_path
from keyglue.ui import options
from keyglue.ui.console import console, print_error, print_hint, print_rows

if TYPE_CHECKING:
    from keyglue.reconstruction.colmap import ModelSummary
    from keyglue.reconstruction.extract import Masks, Progress


class PairChoice(str, Enum):
    """Ways of choosing pairs; keyglue.reconstruction.choose.PAIR_CHOICES says how."""

    auto = "auto"
    exhaustive = "exhaustive"
    sequential = "sequential"
    retrieval = "retrieval"
    gps = "gps"


class Mapper(str, Enum):
    """COLMAP's mappers."""

    incremental = "incremental"
    globally = "global"


class Sharing(str, Enum):
    """Which images share a camera."""

    auto = "auto"
    single = "single"
    folder = "folder"
    image = "image"


class View(str, Enum):
    """Sides from which a model is drawn."""

    oblique = "oblique"
    top = "top"
    front = "front"


Images = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the photographs.", show_default=False)]
Resize = Annotated[
    int, typer.Option("--resize", min=0, metavar="PIXELS", help="Long side of what the model sees; 0 for full size.")
]
Keypoints = Annotated[
    int, typer.Option("--max-keypoints", min=-1, metavar="N", help="Keep only the best keypoints; -1 for all.")
]
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="cpu, cuda:0, ...; repeat it for one process each. Default: best.")
]
MaskFolder = Annotated[
    Path | None,
    typer.Option("--masks", metavar="DIR", help="Masks, named as the images with .png; black: no keypoints."),
]
MaskColour = Annotated[
    str | None, typer.Option("--mask-colour", metavar="HEX", help="Leave out pixels of this colour, such as 000000.")
]
FindTurns = Annotated[
    bool,
    typer.Option("--find-turns", help="Photographs may be turned to each other: find out how, and describe them so."),
]
MaxTile = Annotated[
    int, typer.Option("--max-tile", min=384, metavar="PIXELS", help="Describe larger images in tiles of this length.")
]
Threads = Annotated[int, typer.Option("--threads", min=1, metavar="N", help="Threads that decode images ahead.")]
Choice = Annotated[PairChoice, typer.Option("--pairs", help="Which images are matched with which.")]
Neighbours = Annotated[
    int, typer.Option("--neighbours", min=1, metavar="N", help="Other images for each, by retrieval or GPS.")
]
Overlap = Annotated[int, typer.Option("--overlap", min=1, metavar="N", help="Following images for each of a sequence.")]
MinOverlap = Annotated[
    int | None,
    typer.Option("--min-overlap", min=0, metavar="N", help="Skip pairs whose quick comparison gives less; 0 for none."),
]
Memory = Annotated[int, typer.Option("--memory", min=1, metavar="MB", help="Features kept in memory while matching.")]
MapperOption = Annotated[Mapper, typer.Option("--mapper", help="How the model is built.")]
SharingOption = Annotated[Sharing, typer.Option("--cameras", help="Which images share a camera.")]
CameraModel = Annotated[str, typer.Option("--camera-model", metavar="NAME", help="COLMAP's camera model.")]
Refine = Annotated[
    bool, typer.Option("--refine/--no-refine", help="Move keypoints to where the photographs agree, then adjust.")
]
PrincipalPoint = Annotated[
    bool, typer.Option("--principal-point", help="Let --refine estimate the cameras' principal points too.")
]
CameraParams = Annotated[
    str | None,
    typer.Option("--camera-params", metavar="LIST", help="Known parameters in COLMAP's order: 'fx,fy,cx,cy'."),
]


def reconstruct(
    images: Images,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model; made where needed.")],
    model: options.Model = None,
    max_keypoints: Keypoints = 2048,
    resize: Resize = 1280,
    equalize: options.Equalize = True,
    masks: MaskFolder = None,
    mask_colour: MaskColour = None,
    find_turns: FindTurns = False,
    pairs: Choice = PairChoice.auto,
    neighbours: Neighbours = 20,
    overlap: Overlap = 10,
    min_overlap: MinOverlap = None,
    mapper: MapperOption = Mapper.incremental,
    cameras: SharingOption = Sharing.auto,
    camera_model: CameraModel = "SIMPLE_RADIAL",
    camera_params: CameraParams = None,
    refine: Refine = True,
    principal_point: PrincipalPoint = False,
    max_tile: MaxTile = 1280,
    threads: Threads = 2,
    memory: Memory = 1024,
    device: Devices = None,
    dtype: options.Precision = None,
    compile: options.Compile = None,
) -> None:
    """Make a 3D model from a folder of photographs.

    Describes the images, matches and verifies pairs, and maps them with COLMAP; needs keyglue[sfm]. The output folder
    gets sparse/ (COLMAP), points.ply, model.png, summary.json, and the stores of every stage. The same command
    goes on where it was stopped, and does again only what has changed. An image that can't be read is reported
    and left out.
    """
    from keyglue.reconstruction.choose import PairOptions
    from keyglue.reconstruction.colmap import MapOptions
    from keyglue.reconstruction.reconstruct import ReconstructOptions
    from keyglue.reconstruction.reconstruct import reconstruct as run

    given = options.given(min_overlap=min_overlap, compile=compile)
    settings = ReconstructOptions(
        model=model,
        max_keypoints=max_keypoints,
        resize=resize,
        equalize=equalize,
        devices=tuple(device or ()),
        dtype=dtype,
        masks=read_masks(masks, mask_colour),
        find_turns=find_turns,
        max_tile=max_tile,
        threads=threads,
        memory=memory << 20,
        pairs=PairOptions(choice=pairs.value, neighbours=neighbours, overlap=overlap),
        mapping=MapOptions(
            mapper=mapper.value,
            cameras=cameras.value,
            camera_model=camera_model,
            camera_params=read_numbers(camera_params),
            refine=refine,
            principal_point=principal_point,
        ),
        **given,
    )
    with progress_bars() as progress:
        found = run(images, output, settings, progress)
    for name, reason in found.failed.items():
        print_error(f"{name}: {reason}")
    times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in found.seconds.items())
    print_rows(
        [*summary_rows(found.summary), ("models", str(found.models)), ("time", times), ("written to", str(output))]
    )
    missing = found.summary.images - found.summary.registered
    if missing and not find_turns:
        print_hint(
            f"{missing} of {found.summary.images} images are not in the model. If the photographs are turned to each "
            "other, --find-turns helps."
        )


def show(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a model.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Picture to write.")] = Path("model.png"),
    view: Annotated[View, typer.Option("--view", help="Side to look from.")] = View.oblique,
    pair: Annotated[
        tuple[str, str] | None,
        typer.Option("--pair", metavar="IMAGE0 IMAGE1", help="Draw the matches of two images instead."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="FOLDER", help="Folder of the photographs, for --pair.")
    ] = None,
) -> None:
    """Draw the cameras and points of a model, or the matches of two of its images.

    --pair takes names relative to the folder of the photographs; MODEL is then the output folder of reconstruct, or
    another folder with features.h5 and matches.h5.
    """
    options.check_target(output, "-o", options.PICTURE_SUFFIXES)
    if pair is not None:
        if images is None:
            raise typer.BadParameter("--pair needs the photographs.", param_hint="--images")
        from keyglue.reconstruction.show import draw_stored_matches

        picture = draw_stored_matches(model / "features.h5", model / "matches.h5", images, *pair)
    else:
        from keyglue.reconstruction.colmap import read_model
        from keyglue.reconstruction.show import draw_model

        picture = draw_model(read_model(model), view=view.value)
    with atomic_path(output) as temporary:
        picture.save(temporary)
    print_rows([("written", str(output))])


def read_numbers(text: str | None) -> tuple[float, ...] | None:
    """Return the numbers of a list with commas, None where none is given."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text} is no list of numbers.", param_hint="--camera-params") from None


def read_masks(folder: Path | None, colour: str | None) -> Masks:
    """Return where keypoints are wanted, from what the options say."""
    from keyglue.reconstruction.extract import Masks

    if folder is not None and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder.", param_hint="--masks")
    if colour is None:
        return Masks(folder=folder)
    digits = colour.removeprefix("#")
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise typer.BadParameter(f"{colour} is no colour; 000000 is black.", param_hint="--mask-colour") from None
    return Masks(folder=folder, colour=(red, green, blue))


def summary_rows(summary: ModelSummary) -> list[tuple[str, str]]:
    """Return what to print of a model."""
    return [
        ("images registered", f"{summary.registered} of {summary.images}"),
        ("points", str(summary.points)),
        ("mean track length", f"{summary.track_length:.2f}"),
        ("mean reprojection error", f"{summary.error:.3f} px"),
    ]


@contextmanager
def progress_bars() -> Generator[Progress]:
    """Yield a function that shows a bar for each stage, with the rate and the time left; on a terminal only."""
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        """Number of things done each second."""

        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f}/s")

    where = console(error=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Bars(*columns, console=where, transient=True, disable=not where.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                # What was there already does not count for the rate.
                tasks[stage] = bars.add_task(stage, total=total, completed=done)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress
