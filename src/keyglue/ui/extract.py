"""``keyglue extract``: describe images once, for matching them many times."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyglue.base.errors import InputError, KeyglueError
from keyglue.base.files import atomic_path
from keyglue.ui import options
from keyglue.ui.console import print_error, print_rows, with_progress
from keyglue.ui.startup import imports

if TYPE_CHECKING:
    from PIL.Image import Image

    from keyglue.base.types import Features


def extract(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the features; made where needed.")],
    draw: Annotated[bool, typer.Option("--draw", help="Draw the keypoints of each image beside its features.")] = False,
    overwrite: options.Overwrite = False,
    model: options.Model = None,
    max_keypoints: options.MaxKeypoints = None,
    resize: options.Resize = None,
    equalize: options.Equalize = True,
    device: options.Compute = None,
    dtype: options.Precision = None,
    compile: options.Compile = None,
) -> None:
    """Find the keypoints of images and describe them.

    photo.jpg becomes OUTPUT/photo.jpg.safetensors, which Features.load reads. Results that are there already are
    skipped; an image that can't be read is reported and left out (exit code 1).
    """
    names = [image.name for image in images]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several images are called {twice[0]}: extract them into different folders.")
    output.mkdir(parents=True, exist_ok=True)
    with imports():
        from keyglue.pipelines.matcher import Matcher

    settings = options.given(
        model=model,
        max_keypoints=max_keypoints,
        resize=resize,
        equalize=equalize,
        device=device,
        dtype=dtype,
        compile=compile,
    )
    targets = {image: output / f"{image.name}.safetensors" for image in images}
    pending = [image for image in images if overwrite or not targets[image].exists()]
    failures = keypoints = 0
    if pending:
        matcher = Matcher.from_pretrained(**settings)
        for image in with_progress(pending, "describing"):
            try:
                features = matcher.extract(image)
                features.save(targets[image])
                keypoints += len(features)
                if draw:
                    with atomic_path(output / f"{image.name}.png") as temporary:
                        _draw(image, features).save(temporary)
            except (KeyglueError, OSError) as error:
                failures += 1
                print_error(f"{image}: {error}")
    print_rows(
        [
            ("images described", str(len(pending) - failures)),
            ("there already", str(len(images) - len(pending))),
            ("failed", str(failures)),
            ("keypoints", str(keypoints)),
            ("written to", str(output)),
        ]
    )
    raise typer.Exit(1 if failures else 0)


def _draw(image: Path, features: Features) -> Image:
    from keyglue.images.coordinates import resize_keypoints
    from keyglue.images.draw import draw_keypoints

    original = features.original_size or features.image_size
    return draw_keypoints(
        image, resize_keypoints(features.keypoints, features.image_size, original), features.keypoint_scores
    )
