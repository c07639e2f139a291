"""How near keyglue comes to what this machine's arithmetic allows.

    python benchmarks/roofline.py [--threads 1] [--rounds 7] [--sizes 480x640] [--points 512 1024] [--out NAME]

The rates are measured: the best of several matrix products, in float32 and, where the processor has it, bfloat16, and
of a copy that no cache holds. Operations are multiplications and additions of the convolutions and matrix products that
the published architecture asks for; a share above what a rate allows would mean work that was saved, not speed.
"""

from __future__ import annotations

from typing import Any

import torch
from common import arguments, detector, machine, measure, photograph, published_size_model, report, table
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
    torch.set_num_threads(options.threads)
    kinds = [torch.float32]
    if has_fast_bfloat16(torch.device("cpu")):
        kinds.append(torch.bfloat16)
    rates = {str(kind).removeprefix("torch."): matrix_rate(kind, options.rounds) for kind in kinds}
    copies = copy_rate(options.rounds)
    rows: list[list[object]] = []
    clock = "wall" if _many() else "cpu"
    with torch.no_grad():
        for name, rate in rates.items():
            for what, operations, run in works(options, name):
                found = measure({"": run}, options.rounds)[""].summary()
                milliseconds = found[f"median_{clock}"]
                reached = operations / milliseconds / 1e6
                floor = operations / rate / 1e6
                rows.append(
                    [
                        what,
                        name,
                        f"{operations / 1e9:.1f}",
                        f"{floor:.0f}",
                        milliseconds,
                        f"{100 * reached / rate:.0f} %",
                    ]
                )
    header = ["work", "type", "GFLOP", "floor, ms", f"{'wall' if _many() else 'CPU'} ms", "share of the matrix rate"]
    measured = [[f"matrix product, {name}", f"{rate:.0f} GFLOP/s"] for name, rate in rates.items()]
    measured.append(["copy, reading and writing", f"{copies:.1f} GB/s"])
    tables = {"This machine": table(["rate", ""], measured), "Share reached": table(header, rows)}
    about = {**machine(options.threads), "rounds": options.rounds}
    report("Roofline", about, tables, {"rates": rates, "copy": copies, "rows": rows}, options.out)


def works(options: Any, dtype: str) -> Any:
    """Yield name, operations and a function for each kind of work."""
    for size in options.sizes:
        height, width = (int(side) for side in size.split("x"))
        model, image = detector(1024, dtype), photograph(STEREO[0], (height, width))
        if dtype == "bfloat16":
            model = detector(1024)  # float32 weights, bfloat16 products
        operations = superpoint_operations((height, width), model.config)
        yield f"SuperPoint {size}", operations, lambda model=model, image=image: model.extract(image)
    for points in options.points:
        model = published_size_model(points, None if dtype == "bfloat16" else dtype, **OFF)
        size = tuple(int(side) for side in options.sizes[0].split("x"))
        first, second = (model.extract(photograph(name, size)) for name in STEREO)
        operations = lightglue_operations(len(first), len(second), model.config)
        yield f"LightGlue {points} + {points}", operations, lambda m=model, a=first, b=second: m.match(a, b)


if __name__ == "__main__":
    main()
