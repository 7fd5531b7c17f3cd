"""Pictures of networks at work: energies, errors, variances, dictionaries and images.

Every function draws into the Axes that it is given, or into a new figure, and returns the Axes:
``pyro.plots.energies(trace).figure.savefig("energies.png")``. It needs matplotlib, which is loaded by the first call;
pyplot and its figures are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch import Tensor

from .arguments import kind_of
from .nodes import FactorizedGaussianNode, IsotropicGaussianNode, MultivariateGaussianNode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .run.trace import Trace

__all__ = ["dictionary", "energies", "errors", "history", "images", "variances"]

# of Okabe and Ito, which people with any colour vision tell apart; yellow is left out, as it is pale on white
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
_MARKS = 25  # steps up to which every one has a mark
_DECADE = 10.0  # the ratio of two values from which on a scale is logarithmic
_SHOWN = 1e-5  # the share of the largest from which on logarithmic scales show values
_GAP = 1  # pixels between images


def energies(trace: Trace, ax: Axes | None = None) -> Axes:
    """Energy of every node over the E-steps of a run, and their sum.

    Args:
        trace: of ``loop.run(steps, record=True)``.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes. The scale is logarithmic where no energy is negative and they are apart by more than a factor of 10;
        then zeros are left out, and what is below a hundred-thousandth of the largest.

    Raises:
        TypeError: `trace` is no `Trace`.
        ValueError: no energies were recorded.
    """
    if not hasattr(trace, "energies"):
        raise TypeError(f"trace must be what run(steps, record=True) returns, got {kind_of(trace)}")
    if trace.energies is None:
        raise ValueError("trace must have energies, of run(steps, record=True), got none")
    named = dict(zip(trace.names, trace.energies.double().cpu().T.tolist(), strict=True))
    ax = _lines(named, range(len(trace.energies)), ax, sums=True)
    ax.set(xlabel="E-steps", ylabel="energy per sample (nats)")
    return ax


def history(
    rows: Sequence[Mapping[str, Any]], ax: Axes | None = None, ylabel: str = "energy per sample (nats)"
) -> Axes:
    """Numbers of every node or weight over epochs.

    Args:
        rows: for every epoch numbers by name, or tensors, whose means are taken: what `InferenceLoop.node_energies` or
            `EM.changes` gave after it.
        ax: where to draw; None makes a figure.
        ylabel: what the numbers are.

    Returns:
        The Axes, with a scale as of `energies`.

    Raises:
        ValueError: there are no rows, or they differ in their names.
    """
    rows = _alike(rows, "row", "numbers of one epoch", "names")
    named = {name: [_number(row[name]) for row in rows] for name in rows[0]}
    ax = _lines(named, range(1, len(rows) + 1), ax, sums=False)
    ax.set(xlabel="epoch", ylabel=ylabel)
    return ax


def errors(steps: Sequence[Mapping[str, Tensor]], ax: Axes | None = None) -> Axes:
    """Heat map of the errors of every node over E-steps: their root mean squares over elements and samples.

    Args:
        steps: what `InferenceLoop.errors` gave, before the first step and after each, the lowest node first.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes. Colours are logarithmic; what is below a hundred-thousandth of the largest, where errors are rounding,
        is grey.

    Raises:
        ValueError: there are no steps, or they differ in their nodes.
    """
    steps = _alike(steps, "step", "the errors of one step", "nodes")
    found = torch.tensor(
        [[float(e.detach().double().square().mean().sqrt()) for e in step.values()] for step in steps]
    ).T
    mpl = matplotlib()
    ax = _axes(ax, (7.0, 1.4 + 0.25 * min(len(found), 20)))
    there = found[(found > 0) & found.isfinite()]
    low, high = (float(there.min()), float(there.max())) if len(there) else (1.0, 1.0)
    colours = mpl.colormaps["viridis"].with_extremes(bad="0.9", under="0.9")
    norm = mpl.colors.LogNorm(max(low, _SHOWN * high), high * (1 + 1e-9 + (low == high)))
    shown = found.masked_fill(~((found > 0) & found.isfinite()), math.nan).numpy()
    image = ax.imshow(shown, aspect="auto", origin="lower", cmap=colours, norm=norm, interpolation="nearest")
    names = list(steps[0])
    every = math.ceil(len(names) / 20)
    ax.set_yticks(range(0, len(names), every), names[::every])
    ax.xaxis.set_major_locator(_whole_numbers())
    ax.set(xlabel="E-steps")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="error (root mean square)", pad=0.02)
    return ax


def variances(net: nn.Module, ax: Axes | None = None) -> Axes:
    """Variances that the nodes of a network have learned, component by component; of Laplace and Student nodes scales.

    Args:
        net: the network.
        ax: where to draw; None makes a figure.

    Returns:
        The Axes, with a logarithmic scale.

    Raises:
        TypeError: `net` is not a module.
        ValueError: none of its nodes has a variance or a scale.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {kind_of(net)}")
    found: dict[str, Tensor] = {}
    for path, module in net.named_modules():
        name = path or type(module).__name__
        if isinstance(module, IsotropicGaussianNode | FactorizedGaussianNode):
            found[name] = module.logvar.exp()
        elif isinstance(module, MultivariateGaussianNode):
            found[name] = module.covariance.diagonal()
        elif isinstance(scale := getattr(module, "logscale", None), Tensor):
            found[f"{name} (scale)"] = scale.exp()
    if not found:
        raise ValueError(f"net must have nodes with a variance or a scale, got a {type(net).__name__} without")
    ax = _axes(ax, (7.0, 3.6))
    widest = max(v.numel() for v in found.values())
    for (name, variance), colour in zip(found.items(), _colours(len(found)), strict=False):
        values = variance.detach().double().cpu().reshape(-1)
        if len(values) == 1:
            ax.axhline(float(values), color=colour, label=f"{name}, all components")
        else:
            marks = "o" if widest <= 2 * _MARKS else "."
            ax.plot(range(len(values)), values.tolist(), marks, color=colour, label=name, markersize=4)
    ax.set(xlabel="component", ylabel="variance", yscale="log")
    ax.xaxis.set_major_locator(_whole_numbers())
    _finish(ax, len(found))
    return ax


def images(
    rows: Tensor | Mapping[str, Tensor],
    shape: tuple[int, int] | None = None,
    columns: int | None = None,
    ax: Axes | None = None,
    signed: bool = False,
) -> Axes:
    """Images in a grid.

    Args:
        rows: an image in every row, ``[N, pixels]``, ``[N, height, width]`` or ``[N, 1, height, width]``; or such
            tensors by name, of which each has a row of the grid.
        shape: height and width of images that are rows of numbers; None takes them to be square.
        columns: of the grid; None takes about twice as many as rows, and of named tensors their lengths.
        ax: where to draw; None makes a figure.
        signed: whether values are coloured around 0, as of weights: red above it and blue below. Else black is the
            least value and white the largest; where all are from 0 to 1, these two.

    Returns:
        The Axes.

    Raises:
        TypeError: `rows` holds no tensors.
        ValueError: there are no images, or they have no height and width.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be positive, got {columns}")
    named = rows if isinstance(rows, Mapping) else {"": rows}
    stacks = [_stack(name or "rows", t, shape) for name, t in named.items()]
    if not stacks:
        raise ValueError("rows must hold at least one image, got none")
    if len({s.shape[1:] for s in stacks}) > 1:
        sizes = ", ".join(str(tuple(s.shape[1:])) for s in stacks)
        raise ValueError(f"rows must hold images of one size, got {sizes}")
    if isinstance(rows, Mapping):
        columns = max(map(len, stacks)) if columns is None else columns
        stacks = [s[:columns] for s in stacks]
    else:
        columns = math.ceil(math.sqrt(2 * len(stacks[0]))) if columns is None else columns
        columns = min(columns, len(stacks[0]))
        stacks = list(stacks[0].split(columns))
    height, width = stacks[0].shape[1:]
    grid = torch.full((len(stacks) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP), math.nan)
    for i, stack in enumerate(stacks):
        for j, image in enumerate(stack):
            top, left = i * (height + _GAP), j * (width + _GAP)
            grid[top : top + height, left : left + width] = image
    here = grid[grid.isfinite()]
    least, most = (float(here.min()), float(here.max())) if len(here) else (0.0, 1.0)
    if signed:
        most = max(abs(least), abs(most)) or 1.0
        least = -most
    elif least >= 0 and most <= 1:
        least, most = 0.0, 1.0
    across = min(10.0, max(2.0, 0.7 * columns))
    ax = _axes(ax, (across, across * grid.shape[0] / grid.shape[1] + 0.1))
    colours = matplotlib().colormaps["RdBu_r" if signed else "gray"].with_extremes(bad="white")
    ax.imshow(grid.numpy(), cmap=colours, vmin=least, vmax=most, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    if isinstance(rows, Mapping):
        ax.set_yticks([i * (height + _GAP) + (height - 1) / 2 for i in range(len(stacks))], list(named))
        ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def dictionary(
    weight: Tensor, shape: tuple[int, int] | None = None, columns: int | None = None, ax: Axes | None = None
) -> Axes:
    """What every unit adds to the image that it predicts: the columns of a weight, each scaled to its own largest.

    Args:
        weight: of the edge that predicts images, ``[pixels, units]``. What the units of an edge *from* images look for
            are its rows: give the transposed.
        shape: as of `images`, and so are the others.
        columns: of the grid.
        ax: where to draw.

    Returns:
        The Axes.

    Raises:
        TypeError: `weight` is not a tensor.
        ValueError: it is no matrix, or columns are no images.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, got {kind_of(weight)}")
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix, [pixels, units], got shape {tuple(weight.shape)}")
    atoms = weight.detach().T
    largest = atoms.abs().amax(1, keepdim=True)
    return images(atoms / largest.where(largest > 0, torch.ones_like(largest)), shape, columns, ax, signed=True)


def matplotlib() -> Any:
    """The package, with the parts that are used here, or an error that says how to install it."""
    try:
        import matplotlib as package
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.ticker
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "pyromancy.plots needs matplotlib: pip install matplotlib", name="matplotlib"
        ) from None
    return package


def _whole_numbers() -> Any:
    """Where ticks of steps and epochs are."""
    return matplotlib().ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10])


def _axes(ax: Axes | None, size: tuple[float, float]) -> Any:
    """The Axes that were given, or those of a new figure."""
    if ax is not None:
        return ax
    return matplotlib().figure.Figure(figsize=size, dpi=150, layout="constrained").subplots()


def _lines(named: Mapping[str, Sequence[float]], at: Sequence[int], ax: Axes | None, sums: bool) -> Any:
    """A line for every name, and one for their sum."""
    ax = _axes(ax, (7.0, 4.0))
    marks = "o" if len(at) <= _MARKS else ""
    for (name, values), colour in zip(named.items(), _colours(len(named)), strict=False):
        ax.plot(at, values, color=colour, label=name, marker=marks, markersize=3.5, linewidth=1.5)
    total: list[float] = []
    if sums and len(named) > 1:
        total = [math.fsum(values) for values in zip(*named.values(), strict=True)]
        ax.plot(at, total, color="black", label="all", marker=marks, markersize=3.5, linewidth=2)
    values = [v for line in named.values() for v in line if math.isfinite(v) and v != 0]
    if values and min(values) > 0 and max(values) > _DECADE * min(values):
        ax.set_yscale("log", nonpositive="mask")
        most = max([*values, *filter(math.isfinite, total)])
        ax.set_ylim(max(0.5 * min(values), _SHOWN * most), 2 * most)
    ax.xaxis.set_major_locator(_whole_numbers())
    ax.margins(x=0.02)
    _finish(ax, len(named) + (sums and len(named) > 1))
    return ax


def _colours(count: int) -> list[Any]:
    """One for each, told apart by everyone; of many, dark to light in their order."""
    if count <= len(_PALETTE):
        return list(_PALETTE)
    colours = matplotlib().colormaps["viridis"]
    return [colours(0.9 * i / (count - 1)) for i in range(count)]


def _finish(ax: Any, count: int) -> None:
    """What all have: a pale grid, open to the right, and a legend beside."""
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    shown, names = ax.get_legend_handles_labels()
    if count > 1 or names:
        every = math.ceil(len(names) / 14)
        kept = sorted({*range(0, len(names), every), len(names) - 1})
        ax.legend(
            [shown[i] for i in kept], [names[i] for i in kept],
            loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small",
        )  # fmt: skip


def _number(value: Any) -> float:
    return float(value.detach().double().mean()) if isinstance(value, Tensor) else float(value)


def _stack(name: str, t: Tensor, shape: tuple[int, int] | None) -> Tensor:
    """Images, ``[N, height, width]``."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {kind_of(t)}")
    if t.dim() == 4 and t.shape[1] == 1:
        t = t[:, 0]
    if t.dim() == 2:
        side = math.isqrt(t.shape[1])
        if shape is None and side * side != t.shape[1]:
            raise ValueError(f"{name} must be square images without shape=(height, width), got {t.shape[1]} pixels")
        height, width = shape or (side, side)
        if height * width != t.shape[1]:
            raise ValueError(f"{name} must have {height * width} pixels of shape {(height, width)}, got {t.shape[1]}")
        t = t.reshape(len(t), height, width)
    if t.dim() != 3 or 0 in t.shape:
        raise ValueError(f"{name} must hold images, [N, pixels] or [N, height, width], got shape {tuple(t.shape)}")
    return t.detach().float().cpu()


def _alike(given: Sequence[Mapping[str, Any]], what: str, least: str, names: str) -> list[Mapping[str, Any]]:
    """Rows or steps, once they have been found to hold the same names."""
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"{what}s must be a list of mappings, {least} in each, got {kind_of(given)}")
    found = list(given)
    if not found or not found[0]:
        raise ValueError(f"{what}s must hold {least} at least, got none")
    for i, one in enumerate(found):
        if list(one) != list(found[0]):
            raise ValueError(f"{what}s must have the same {names}, got {[*found[0]]} first and {[*one]} in {what} {i}")
    return found
