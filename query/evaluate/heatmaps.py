"""What heatmaps are made of: the picture of a matrix, and an order in which rows that are alike stand together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float64Array = npt.NDArray[np.float64]

_UNKNOWN = "#BBBBBB"


def show(ax: Axes, values: Float64Array, colours: str, limits: tuple[float, float], figure: Figure | None = None,
         label: str = "") -> None:  # fmt: skip
    """Draws a matrix, row 0 on top.

    Args:
        ax: Where to.
        values: ``[rows, columns]``; a NaN is drawn grey.
        colours: Name of a colour map of matplotlib.
        limits: Values of its first and last colour.
        figure: Gets a bar of the colours, if it is given.
        label: Of that bar.
    """
    import matplotlib

    shown = matplotlib.colormaps[colours].with_extremes(bad=_UNKNOWN)
    image = ax.imshow(values, cmap=shown, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if figure is not None:
        bar = figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
        bar.set_label(label, fontsize=8)
        bar.outline.set_visible(False)


def strip(ax: Axes, colours: Sequence[str]) -> None:
    """Puts a strip of colours beside the rows of a matrix that is drawn, to its left; one colour a row."""
    from matplotlib.patches import Rectangle

    unit = len(colours) / 50
    for row, colour in enumerate(colours):
        ax.add_patch(Rectangle((-0.5 - 1.2 * unit, row - 0.5), unit, 1.0, color=colour, linewidth=0))
    ax.set_xlim(left=-0.5 - 1.3 * unit)


def clustered(rows: Float64Array) -> list[int]:
    """The order of a hierarchical clustering of rows (average linkage of Euclidean distances).

    Args:
        rows: ``[n, d]``, finite.
    """
    if len(rows) < 3:
        return list(range(len(rows)))
    return [int(i) for i in leaves_list(linkage(pdist(rows), "average", optimal_ordering=True))]


def label_size(count: int) -> float:
    """Points of the labels of that many rows."""
    return 8.0 if count <= 12 else 7.0 if count <= 30 else 6.0


def block_labels(blocks: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """What the names of blocks begin with, up to a dot, and what is left of each, cut after 14 characters.

    ``visual.blocks.0`` and ``visual.blocks.1``: ``visual.blocks`` and ``0``, ``1``.
    """
    folders = [block.split(".")[:-1] for block in blocks]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False)) if len(blocks) > 1 else ()
    stem = ".".join(parts[0] for parts in same)
    return stem, tuple(block.removeprefix(f"{stem}." if stem else "")[:14] for block in blocks)
