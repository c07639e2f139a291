"""What several tests of training need on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def depth_folder(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Path:
    """Write the stereo pair as a posed scene: depth = focal length x baseline / (disparity + shift of the centres)."""
    folder = tmp_path_factory.mktemp("scene")
    disparity = np.load(assets / "motorcycle_disparity.npz")["disparity"]
    focal, baseline, left_x, right_x, y = 994.978, 0.193001, 311.193, 342.279, 254.877
    total = np.where(np.isfinite(disparity), disparity, 0)
    depth = np.where(total > 0, focal * baseline / (total + right_x - left_x), 0)
    # Depth of the right image, by moving each pixel to where it is seen there; the nearest wins.
    right = np.zeros_like(depth)
    for row, column in zip(*np.nonzero(depth), strict=True):
        there = round(column - disparity[row, column])
        if there >= 0 and (right[row, there] == 0 or depth[row, column] < right[row, there]):
            right[row, there] = depth[row, column]
    frames = []
    for name, values, x, shift in (("left", depth, left_x, 0.0), ("right", right, right_x, -baseline)):
        (folder / f"{name}.png").symlink_to(assets / f"motorcycle_{name}.png")
        Image.fromarray((values * 5000).round().astype(np.uint16)).save(folder / f"{name}_depth.png")
        K = [[focal, 0, x], [0, focal, y], [0, 0, 1]]
        frames.append(
            {"name": f"{name}.png", "w": 741, "h": 500, "K": K, "R": np.eye(3).tolist(), "t": [shift, 0, 0]}
            | {"depth": f"{name}_depth.png", "depth_scale": 0.0002}
        )
    (folder / "scene.json").write_text(json.dumps({"frames": frames}))
    return folder
