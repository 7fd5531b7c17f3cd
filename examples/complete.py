"""Complete digits of which the label and the upper half are given, and draw digits that never were.

    python examples/complete.py               # scikit-learn's digits, offline; draws complete.png

A network generates: a label predicts a code, the code hidden units, and these the pixels. E-steps are Langevin's, so
that they end at draws from the posterior, and weights learn to make the images likely (Monte Carlo predictive coding,
https://doi.org/10.1371/journal.pcbi.1012532). From the likeliest states alone they would learn a prior that is far too
wide. To complete an image, its label and what is known are clamped, and inference finds code, hidden units, and the
lower half.

The mean square of completed pixels of test images stands beside that of the mean image of the kind, of the image of the
kind whose upper half is nearest, and of linear regression; how often a draw is of its kind is for the three nearest
training images to say.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

import pyromancy as pyro
from digits import load_digits
from pictures import draw_rows
from pyromancy.methods import Accelerated, Langevin
from pyromancy.nodes import FixedNode, IsotropicGaussianNode, StandardGaussianNode

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS, CODE, HIDDEN = 10, 16, 128
HIDDEN_VARIANCE, PIXEL_VARIANCE = 0.2, 0.03
STEPS, RATE = 50, 0.005  # of Langevin's
DRAWN = 5  # digits of every kind


class Generator(pyro.networks.PCN):
    """Label, code, hidden units and pixels, each Gaussian around what the one before predicts, of constant variance."""

    def __init__(self, pixels: int) -> None:
        hidden = IsotropicGaussianNode(HIDDEN, variance=HIDDEN_VARIANCE)
        image = IsotropicGaussianNode(pixels, variance=PIXEL_VARIANCE)
        hidden.logvar.requires_grad_(False), image.logvar.requires_grad_(False)
        top, middle = nn.Linear(KINDS, CODE), nn.Linear(CODE, HIDDEN)
        nn.init.normal_(top.weight, std=2), nn.init.normal_(middle.weight, std=CODE**-0.5)
        edges = [top, middle, nn.Sequential(nn.Tanh(), nn.Linear(HIDDEN, pixels))]
        super().__init__([FixedNode(KINDS), StandardGaussianNode(CODE), hidden, image], edges)

    def learn(self, labels: Tensor, images: Tensor, epochs: int, rate: float = 3e-3) -> None:
        """EM with Langevin's E-steps."""
        generator = torch.Generator().manual_seed(torch.initial_seed())
        em = pyro.EM(
            self.energy, self.e_params(), torch.optim.Adam(self.m_params(), rate), start=self.start,
            steps=STEPS, method=Langevin(RATE, generator=generator),
        )  # fmt: skip
        for _ in range(epochs):
            for _ in em.epoch(labels, images, batch_size=64, generator=generator):
                pass

    def complete(self, labels: Tensor, given: Tensor, known: Tensor) -> Tensor:
        """Images whose known pixels are given, at the likeliest states.

        Args:
            labels: one-hot, ``[N, 10]``.
            given: ``[N, pixels]``; what it has where it is not known does not matter.
            known: ``[N, pixels]``.
        """
        nodes: list[Any] = list(self.nodes)
        label, code, hidden, pixels = nodes
        self.start(labels)

        def energy() -> Tensor:
            state = torch.where(known, given, pixels.value)
            return (
                code.energy(self.edges[0](label.value))
                + hidden.energy(self.edges[1](code.value))
                + pyro.functional.gaussian_energy(state, self.edges[2](hidden.value), pixels.logvar)
            )

        loop = pyro.InferenceLoop(energy, [code.value, hidden.value, pixels.value], method=Accelerated())
        loop.run(500, tol=1e-4)
        return torch.where(known, given, pixels.value.detach())

    @torch.no_grad()
    def draw(self, labels: Tensor) -> Tensor:
        """Images of these kinds, ``[N, pixels]``: every state is drawn around its prediction, but for the pixels."""
        z = labels
        nodes: list[Any] = list(self.nodes)
        for node, edge in zip(nodes[1:-1], self.edges, strict=False):
            z = node.sample(edge(z))
        images: Tensor = self.edges[-1](z)
        return images


def main(argv: Sequence[str] | None = None) -> tuple[dict[str, float], float]:
    """Run the command line.

    Returns:
        The error per missing pixel by way of completion, and the share of draws that are of their kind.
    """
    p = argparse.ArgumentParser(description="Complete digits of which the upper half is given, and draw new ones.")
    p.add_argument("--epochs", type=int, default=60, help="passes over the training images (60)")
    p.add_argument("--seed", type=int, default=0, help="of the weights, the order of images and the noise (0)")
    p.add_argument("--plot", type=Path, default=Path("complete.png"), metavar="FILE", help="picture (complete.png)")
    args = p.parse_args(argv)
    data = load_digits()
    torch.manual_seed(args.seed)
    x, y, of_x, of_y = data.train_x, data.test_x, data.train_labels, data.test_labels
    labels, test_labels = F.one_hot(of_x).float(), F.one_hot(of_y).float()
    half = x.shape[1] // 2
    net = Generator(x.shape[1])
    net.learn(labels, x, args.epochs)

    known = (torch.arange(x.shape[1]) < half).expand_as(y)
    completed = net.complete(test_labels, y, known)
    far = torch.cdist(y[:, :half], x[:, :half]).masked_fill(of_y[:, None] != of_x, math.inf)
    regression = Ridge().fit(torch.cat([labels, x[:, :half]], 1), x[:, half:])
    ways = {
        "this network": completed[:, half:],
        "mean of the kind": torch.stack([x[of_x == k].mean(0) for k in range(KINDS)])[of_y][:, half:],
        "nearest of the kind": x[far.argmin(1)][:, half:],
        "linear regression": torch.from_numpy(regression.predict(torch.cat([test_labels, y[:, :half]], 1))),
    }
    errors = {way: (found - y[:, half:]).square().mean().item() for way, found in ways.items()}
    print("mean square of completed pixels:", "; ".join(f"{way} {e:.4f}" for way, e in errors.items()))

    drawn = net.draw(torch.eye(KINDS).repeat(100, 1))
    judge = KNeighborsClassifier(3).fit(x, of_x)
    right = float(judge.score(drawn, torch.arange(KINDS).repeat(100)))
    print(f"{right:.1%} of draws are of their kind, and {judge.score(y, of_y):.1%} of test images")

    first = torch.stack([(of_y == k).nonzero()[0, 0] for k in range(KINDS)])
    rows = {"given": torch.where(known, y, 0.5)[first], "completed": completed[first], "true": y[first]}
    rows |= {f"drawn, {i + 1}": drawn[KINDS * i : KINDS * (i + 1)] for i in range(DRAWN)}
    draw_rows(rows, KINDS, args.plot)
    print(f"drawn: {args.plot}")
    return errors, right


if __name__ == "__main__":
    main()
