"""A quick look at whole EM batches on this machine, against the same in plain PyTorch.

Both start from the same weights and take the same batches in alternation, so that their ratio compares moments and not
two moods of a machine. Where their results differ there is no figure.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from .. import backends, networks
from ..plots import matplotlib
from ..run import EM

_ROUNDS = 5, 60  # at least and at most
_DISTURBED = 0.3  # interquartile range over the median from which on a figure has a ~
_ADAM = 1e-3
_ROUND = 0.02  # seconds that one takes at least
_NEAR = {torch.float64: 1e-9, torch.float32: 1e-3}  # how far results may be apart, of their norm


@dataclass(frozen=True)
class Setting:
    """An EM batch: forward sweep, E-steps, one M-step of Adam, on random data with both ends clamped."""

    sizes: tuple[int, ...]
    batch: int
    steps: int
    activation: str
    lr: float = 0.05


SETTINGS = {
    "small": Setting((784, 128, 10), 64, 20, "relu"),
    "tutorial": Setting((784, 256, 256, 10), 500, 32, "relu"),
    "deep": Setting((784, *[128] * 19, 10), 64, 64, "tanh"),
    "generative": Setting((10, 256, 256, 784), 200, 20, "tanh"),
}


@dataclass(frozen=True)
class Row:
    """What was measured: medians of milliseconds, and of the ratio with the quartiles of that."""

    name: str
    plain: float
    ours: float
    ratio: float
    quartiles: tuple[float, float]

    @property
    def disturbed(self) -> bool:
        """Whether rounds differ so much that the ratio should not be relied on."""
        return self.quartiles[1] - self.quartiles[0] > _DISTURBED * self.ratio


class Differs(Exception):
    """The two came to other results; the message says by how much."""


def bench(names: Sequence[str], seconds: float, threads: int | None, picture: Path | None) -> int:
    """Measure settings, print a table and draw a picture.

    Args:
        names: of `SETTINGS`.
        seconds: that all of it should take, about.
        threads: on the CPU; None leaves them as they are.
        picture: where to draw one; None draws none.

    Returns:
        1 where results differ, else 0.
    """
    no_picture = ""
    if picture is not None:
        try:
            matplotlib()  # before the time is spent
        except ModuleNotFoundError as missing:
            picture, no_picture = None, f"\nno picture: {missing}"
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        served = next(s for s in backends.report() if (s.operator, s.device) == ("run_plan_", "cpu"))
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, {served.backend} kernels: {served.detail}\n"
            "one EM batch in float32: forward sweep, E-steps, Adam; medians of alternating rounds\n"
        )
        print(f"{'network, batch, E-steps':38}  {'PyTorch':>9}  {'pyromancy.EM':>12}  {'speedup':>8}", flush=True)
        rows, status = [], 0
        for name in names:
            try:
                rows.append(row := measured(name, SETTINGS[name], seconds / len(names)))
            except Differs as difference:
                print(f"{in_words(name):38}  no figure: {difference}", flush=True)
                status = 1
                continue
            mark = "~" if row.disturbed else ""
            print(
                f"{in_words(name):38}  {_ms(row.plain):>9}  {_ms(row.ours):>12}  {mark + format(row.ratio, '.3g'):>7}x",
                flush=True,
            )
        if any(row.disturbed for row in rows):
            print("\n~ rounds differ much, as other work was going on: do not rely on it")
        if picture is not None and rows:
            draw(rows, picture)
            print(f"\npicture: {picture}")
        elif no_picture:
            print(no_picture)
    finally:
        torch.set_num_threads(before)
    return status


def in_words(name: str) -> str:
    """A setting in few words."""
    s = SETTINGS[name]
    first, *hidden, last = s.sizes
    middle = f"{hidden[0]}x{len(hidden)}" if len(hidden) > 2 else "-".join(map(str, hidden))
    return f"{first}-{middle}-{last} {s.activation}, {s.batch}, {s.steps}"


def measured(name: str, setting: Setting, seconds: float) -> Row:
    """A setting, in about so many seconds.

    Raises:
        Differs: results are not those of plain PyTorch.
    """
    check(setting)
    pair = [way.run for way in batches(setting, torch.float32)]
    calls = [max(1, round(_ROUND / min(_seconds(f) for _ in range(3)))) for f in pair]
    began = time.perf_counter()
    times: list[list[float]] = []
    while len(times) < _ROUNDS[0] or (len(times) < _ROUNDS[1] and time.perf_counter() - began < seconds):
        times.append([_seconds(f, n) for f, n in zip(pair, calls, strict=True)])
    ratios = [a / b for a, b in times]
    low, _, high = statistics.quantiles(ratios, n=4)
    of = [1e3 * statistics.median(t) for t in zip(*times, strict=True)]
    return Row(name, of[0], of[1], statistics.median(ratios), (low, high))


def check(setting: Setting) -> None:
    """Compare one batch of `EM` with one of plain PyTorch, in float64 and up to rounding in float32.

    Raises:
        Differs: states or weights are not the same.
    """
    for dtype, near in _NEAR.items():
        plain, ours = batches(setting, dtype)
        for way in (plain, ours):
            way.run()
        for what in ("states", "weights"):
            a, b = (torch.cat([t.detach().flatten() for t in getattr(way, what)]) for way in (plain, ours))
            gap = float((a - b).norm() / a.norm())
            if not gap <= near:
                kind = str(dtype).removeprefix("torch.")
                raise Differs(f"{what} in {kind} are {gap:.2g} from those of PyTorch, where {near:g} may be")


def batches(setting: Setting, dtype: torch.dtype) -> tuple[Plain, Ours]:
    """The same batch in two ways, on weights of their own that start alike."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(setting.batch, n, generator=generator).to(dtype) for n in (setting.sizes[0], setting.sizes[-1]))
    net = networks.mlp(setting.sizes, setting.activation)
    with torch.no_grad():
        for p in net.m_params():
            p.copy_(torch.randn(p.shape, generator=generator) * (p.shape[1] ** -0.5 if p.dim() > 1 else 0.1))
    net.to(dtype)
    return Plain(setting, copy.deepcopy(net.edges), x, y), Ours(setting, net, x, y)


class Plain:
    """A batch as one writes it in PyTorch: energies by its functions, states and weights by its optimizers.

    Args:
        setting: which.
        edges: modules that predict a state from the one before.
        x: the input, ``[B, n]``.
        y: the target, ``[B, m]``.
    """

    def __init__(self, setting: Setting, edges: nn.ModuleList, x: Tensor, y: Tensor) -> None:
        self.edges, self.x, self.y, self.steps, self.lr = edges, x, y, setting.steps, setting.lr
        self.weights = list(edges.parameters())
        self.states: list[Tensor] = []
        self.adam = torch.optim.Adam(self.weights, lr=_ADAM)

    def energy(self) -> Tensor:
        """Half the squares of all errors, ``[B]``."""
        states = [self.x, *self.states, self.y]
        joined = zip(self.edges, states[:-1], states[1:], strict=True)
        return torch.stack([0.5 * (z - edge(below)).square().sum(1) for edge, below, z in joined]).sum(0)

    def run(self) -> None:
        """The batch."""
        self.states, z = [], self.x
        with torch.no_grad():
            for edge in self.edges[:-1]:
                z = edge(z)
                self.states.append(z.clone().requires_grad_())
        descent = torch.optim.SGD(self.states, lr=self.lr)
        for _ in range(self.steps):
            descent.zero_grad()
            self.energy().sum().backward(inputs=self.states)
            descent.step()
        self.adam.zero_grad()
        self.energy().mean().backward(inputs=self.weights)
        self.adam.step()


class Ours:
    """The same batch by `pyromancy.EM`."""

    def __init__(self, setting: Setting, net: networks.PCN, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.weights, self.states = net.m_params(), net.e_params()
        adam = torch.optim.Adam(self.weights, lr=_ADAM)
        self.em = EM(net.energy, self.states, adam, start=net.start, steps=setting.steps, lr=setting.lr)

    def run(self) -> None:
        """The batch."""
        self.em.step(self.x, self.y)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw bars of times as shares of those of PyTorch, with the speedup beside."""
    figure = matplotlib().figure.Figure(figsize=(8, 1.4 + 0.75 * len(rows)), dpi=150, layout="constrained")
    ax = figure.subplots()
    for i, row in enumerate(rows):
        bars = (-0.19, 1.0, row.plain, "0.8", "0.35"), (0.19, 1 / row.ratio, row.ours, "#0072B2", "#0072B2")
        for at, share, ms, colour, ink in bars:
            ax.barh(i + at, share, 0.36, color=colour)
            ours = at > 0
            said = _ms(ms) + (f", {'~' if row.disturbed else ''}{row.ratio:.3g} times as fast" if ours else "")
            ax.annotate(
                said, (share, i + at), (5, 0), textcoords="offset points", va="center", color=ink, fontsize="small",
                fontweight="bold" if ours else "normal",
            )  # fmt: skip
    ax.set_yticks(range(len(rows)), [f"{row.name}\n{in_words(row.name)}" for row in rows], fontsize="small")
    ax.invert_yaxis()
    ax.set(xlabel="time of an EM batch, of that of plain PyTorch", xlim=(0, 1.15))
    ax.xaxis.set_major_formatter(matplotlib().ticker.PercentFormatter(1.0))
    threads = torch.get_num_threads()
    title = f"plain PyTorch and pyromancy.EM, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
    ax.set_title(title, loc="left", fontsize="medium")
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 999.5 else f"{milliseconds:.0f} ms"


def _seconds(run: Callable[[], object], calls: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - began) / calls
