"""Pictures of images that are rows of numbers."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor


def draw_rows(rows: dict[str, Tensor], columns: int, path: Path) -> None:
    """Draw square images in [0, 1], a row of so many for each tensor, under its name."""
    side = math.isqrt(next(iter(rows.values())).shape[1])
    figure = Figure(figsize=(columns, 1.15 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), columns), rows.items(), strict=True):
        for one, image in zip(axes, images, strict=False):
            one.imshow(image.view(side, side).tolist(), cmap="gray_r", vmin=0, vmax=1)
            one.set(xticks=[], yticks=[])
        axes[0].set_title(name, loc="left", fontsize=8)
    figure.savefig(path, dpi=150)
