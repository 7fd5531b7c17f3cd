"""The EM batches of chains that are timed: settings of the literature and its libraries, and sweeps around one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

ADAM_RATE = 1e-3


@dataclass(frozen=True)
class Setting:
    """One batch of inference learning: forward sweep, `steps` E-steps, one M-step of Adam.

    Edges apply the activation first: ``mu = W f(z) + b``. Input and target are clamped.

    Attributes:
        sizes: widths of the nodes, input first.
        batch: samples.
        steps: E-steps.
        activation: "relu", "tanh" or "sigmoid".
        rate: E-step rate.
    """

    sizes: tuple[int, ...]
    batch: int
    steps: int
    activation: str
    rate: float = 0.05

    @property
    def flops(self) -> float:
        """The fewest floating-point operations that the batch needs, counting matrix products only.

        One product through an edge costs two operations per weight and sample. The forward sweep takes one product
        per edge. The clamped input's prediction never changes, so an E-step takes two (prediction and feedback)
        for every other edge. The M-step takes those predictions once more, and one product per edge for its weights.
        """
        first, *others = (a * b for a, b in pairwise(self.sizes))
        sweep = first + sum(others)
        estep = 2 * sum(others)
        mstep = sum(others) + first + sum(others)
        return 2.0 * self.batch * (sweep + self.steps * estep + mstep)

    @property
    def estep_flops(self) -> float:
        """The same for the E-steps alone: they need the clamped input's prediction too, once."""
        first, *others = (a * b for a, b in pairwise(self.sizes))
        return 2.0 * self.batch * (first + self.steps * 2 * sum(others))


SETTINGS = {
    "pyromancy-tutorial": Setting((784, 256, 256, 10), 500, 32, "relu"),
    "ngc-learn": Setting((784, 512, 512, 10), 250, 20, "sigmoid"),
    "pcx": Setting((784, 128, 128, 128, 10), 128, 8, "tanh"),
    "jpc-h5": Setting((784, *[300] * 5, 10), 64, 50, "tanh"),
    "deep": Setting((784, *[128] * 19, 10), 64, 64, "tanh"),
    "small": Setting((784, 128, 10), 64, 20, "relu"),
    "online": Setting((784, 64, 64, 10), 1, 100, "relu"),
    "generative": Setting((10, 256, 256, 784), 500, 32, "relu"),
}
QUICK = ("small", "online")  # for --sizes small

# How the time grows: one variable at a time, around a base that is a point of every sweep.
BASE = Setting((784, 256, 256, 10), 128, 16, "tanh")
SWEEPS = {
    "width": {n: replace(BASE, sizes=(784, n, n, 10)) for n in (64, 128, 256, 512, 1024)},
    "depth": {n: replace(BASE, sizes=(784, *[256] * n, 10)) for n in (1, 2, 4, 8, 16)},
    "batch": {n: replace(BASE, batch=n) for n in (8, 32, 128, 512, 2048)},
    "steps": {n: replace(BASE, steps=n) for n in (4, 16, 64, 256)},
}
