"""Methods for the tests, and objectives whose rows are computed one by one."""

import torch

from pyromancy import methods
from pyromancy.methods import Evaluation
from pyromancy.run.objective import Problem

# those that come to an equilibrium, at rates for energies of curvatures up to about 10
CONVERGENT = [
    methods.Accelerated(),
    methods.Accelerated(coordinates="states"),
    methods.Accelerated(lr=0.05),
    methods.Accelerated(lr=0.05, momentum="depth", coordinates="states"),
    methods.Accelerated(lr=0.05, momentum=0.5),
    methods.LBFGS(),
    methods.LBFGS(memory=2, coordinates="states"),
    methods.Descent(lr=0.05, momentum=0.5, coordinates="errors"),
    methods.Heun(lr=0.05, adaptive=False),
    methods.Heun(lr=0.05, adaptive=False, coordinates="errors"),
    methods.Sequential(lr=0.05),
]
ALL = [
    *CONVERGENT,
    methods.Heun(lr=0.05),
    methods.Adam(lr=0.05),
    methods.Adam(lr=0.05, coordinates="errors"),
    methods.ZIL(),
]


class Rows(Problem):
    """``sum h (x - c)^2 / 2 + x^4``, by operations on elements, and sums of columns in order."""

    floor = 0.0

    def __init__(self, states, centers):
        self.states, self.centers = states, centers

    def begin(self):
        self.point = [x.clone() for x in self.states]

    def end(self):
        for x, found in zip(self.states, self.point, strict=True):
            x.copy_(found)

    def value(self):
        total = torch.zeros(len(self.point[0]), dtype=self.point[0].dtype)
        for i, (x, c) in enumerate(zip(self.point, self.centers, strict=True)):
            for j in range(x.shape[1]):
                d, a = x[:, j] - c[:, j], x[:, j] * x[:, j]
                total = total + 0.5 * (i + j + 1) * (d * d) + a * a
        return total

    def evaluate(self):
        gradients = [
            torch.stack(
                [(i + j + 1) * (x[:, j] - c[:, j]) + 4 * (x[:, j] * x[:, j] * x[:, j]) for j in range(x.shape[1])], 1
            )
            for i, (x, c) in enumerate(zip(self.point, self.centers, strict=True))
        ]
        return Evaluation(self.value(), gradients)

    def terms(self):
        return self.value().unsqueeze(0)

    def gap(self, found):
        """By the smallest curvature, 1."""
        return 0.5 * sum(g.square().sum(1) for g in found.gradient)


def rows(batch, scale=1.0):
    """Random states and centers of two variables."""
    shapes = [(batch, 3), (batch, 2)]
    return [[scale * torch.randn(*s, dtype=torch.float64) for s in shapes] for _ in range(2)]
