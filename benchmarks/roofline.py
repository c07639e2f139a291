"""How near keyglue comes to what this machine's arithmetic allows.

    python benchmarks/roofline.py [--threads 1] [--rounds 7] [--sizes 480x640] [--points 512 1024] [--out NAME]

The rates are measured: the best of several matrix products, in float32 and, where the processor has it, bfloat16, and
of a copy that no cache holds. Operations are multiplications and additions of the convolutions and matrix products that
the published architecture asks for; a share above what a rate allows would mean work that was saved, not speed.
"native" rows are with the kernels of keyglue-native, where they are installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import (
    arguments,
    detector,
    machine,
    measure,
    own_paths,
    photograph,
    published_size_model,
    report,
    restrict,
    table,
    with_isa,
)
from peers import OFF, STEREO

from keyglue import LightGlueConfig, SuperPointConfig
from keyglue.base.devices import has_fast_bfloat16


def superpoint_operations(size: tuple[int, int], config: SuperPointConfig | None = None) -> int:
    """Return the operations of SuperPoint's convolutions for an image of (height, width)."""
    config = config or SuperPointConfig()
    height, width = size
    total, channels = 0, 1
    for stage, wide in enumerate(config.encoder_hidden_sizes):
        pixels = (height >> stage) * (width >> stage)
        total += 2 * 9 * pixels * (channels * wide + wide * wide)
        channels = wide
    cells = (height // config.cell) * (width // config.cell)
    hidden = config.decoder_hidden_size
    heads = 2 * 9 * channels * hidden + hidden * (config.keypoint_decoder_dim + config.descriptor_decoder_dim)
    return total + 2 * cells * heads


def lightglue_operations(points0: int, points1: int, config: LightGlueConfig | None = None) -> int:
    """Return the operations of LightGlue's matrix products for one pair, all layers, all points.

    Each layer: projections and MLP of self and cross block, two self attentions, cross attention both ways. Queries
    and keys of the cross block share a projection, as in the paper; its similarity is counted twice all the same.
    """
    config = config or LightGlueConfig()
    width, points = config.descriptor_dim, points0 + points1
    projections = (4 + 3) * width * width
    mlps = 2 * (2 * width * 2 * width + 2 * width * width)
    # q k^T and weights v: one product of each key with each query.
    pairs = points0**2 + points1**2 + 2 * points0 * points1
    layer = 2 * points * (projections + mlps) + 2 * 2 * width * pairs
    return config.num_hidden_layers * layer + 2 * points * width * width + 2 * width * points0 * points1


def matrix_rate(dtype: torch.dtype, rounds: int) -> float:
    """Return the best rate of matrix products in GFLOP/s, by CPU time for one thread and by the clock for several."""
    best = 0.0
    for rows, inner, columns in ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 512, 512), (4096, 1152, 256)):
        a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        out = torch.empty(rows, columns, dtype=dtype)
        found = measure({"": lambda a=a, b=b, out=out: torch.mm(a, b, out=out)}, rounds, warm_up=2)[""]
        best = max(best, 2 * rows * inner * columns / min(found.wall if _many() else found.cpu) / 1e6)
    return best


def copy_rate(rounds: int) -> float:
    """Return the best rate of a copy in GB/s, reading and writing counted."""
    source = torch.ones(64 * 2**20)
    target = torch.empty_like(source)
    found = measure({"": lambda: target.copy_(source)}, rounds)[""]
    return 2 * 4 * len(source) / min(found.wall if _many() else found.cpu) / 1e6


def _many() -> bool:
    return torch.get_num_threads() > 1


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", nargs="+", default=["480x640", "768x1024"], help="HEIGHTxWIDTH")
    parser.add_argument("--points", type=int, nargs="+", default=[512, 1024, 2048])
    options = parser.parse_args()
    restrict(options.isa)
    torch.set_num_threads(options.threads)
    kinds = [torch.float32]
    if has_fast_bfloat16(torch.device("cpu")):
        kinds.append(torch.bfloat16)
    rates = {kind: matrix_rate(kind, options.rounds) for kind in kinds}
    copies = copy_rate(options.rounds)
    rows: list[list[object]] = []
    clock = "wall" if _many() else "cpu"
    with torch.no_grad():
        for kind, rate in rates.items():
            for what, operations, run in works(options, kind):
                # One path after the other: a model that changes its path prepares its weights again.
                for name, isa in own_paths(kind).items():
                    found = measure({"": with_isa(isa, run)}, options.rounds)[""]
                    milliseconds = found.summary()[f"median_{clock}"]
                    share = 100 * operations / milliseconds / 1e6 / rate
                    floor = operations / rate / 1e6
                    rows.append([what, name, f"{operations / 1e9:.1f}", f"{floor:.0f}", milliseconds, f"{share:.0f} %"])
    header = ["work", "path", "GFLOP", "floor, ms", f"{'wall' if _many() else 'CPU'} ms", "share of the matrix rate"]
    named = {str(kind).removeprefix("torch."): rate for kind, rate in rates.items()}
    measured = [[f"matrix product, {name}", f"{rate:.0f} GFLOP/s"] for name, rate in named.items()]
    measured.append(["copy, reading and writing", f"{copies:.1f} GB/s"])
    tables = {"This machine": table(["rate", ""], measured), "Share reached": table(header, rows)}
    about = {**machine(options.threads), "rounds": options.rounds}
    report("Roofline", about, tables, {"rates": named, "copy": copies, "rows": rows}, options.out)


def works(options: Any, kind: torch.dtype) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Yield name, operations and a function for each kind of work, computing in a type."""
    dtype = "float32" if kind == torch.float32 else None  # weights stay float32, products do not
    sizes = [tuple(int(side) for side in size.split("x")) for size in options.sizes]
    for size in sizes:
        model, image = detector(1024, dtype), photograph(STEREO[0], size)
        operations = superpoint_operations(size, model.config)
        yield f"SuperPoint {size[0]}x{size[1]}", operations, lambda m=model, i=image: m.extract(i)
    for points in options.points:
        matcher = published_size_model(points, dtype, **OFF)
        first, second = (matcher.extract(photograph(name, sizes[0])) for name in STEREO)
        operations = lightglue_operations(len(first), len(second), matcher.config)
        yield f"LightGlue {points} + {points}", operations, lambda m=matcher, a=first, b=second: m.match(a, b)


if __name__ == "__main__":
    main()
