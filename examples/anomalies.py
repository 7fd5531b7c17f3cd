"""Tell images of a kind that was never learned by their free energy.

    python examples/anomalies.py              # scikit-learn's digits, offline; draws anomalies.png
    python examples/anomalies.py --kinds 3 8  # leave out these only

A generative network, of a code that predicts hidden units that predict pixels, learns nine of the ten digits. The free
energy of an image at its likeliest states says how much the network is surprised by it: how unusual its code is, and
what that leaves unexplained. Images of the tenth digit surprise it more. How well that tells them from the other test
images is the area under the ROC curve (AUC), the probability that one of them scores above one of the others.

The energy is a score only as far as the network has learned how likely images are. With Langevin's E-steps it does; if
it is taught by the likeliest states alone, much is explained that was never seen, and fewer are told. What as many
principal components leave over is nearly as good a score as the first, for a fraction of the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import pyromancy as pyro
from digits import load_digits
from pyromancy.methods import Accelerated, Langevin
from pyromancy.nodes import IsotropicGaussianNode, StandardGaussianNode

if TYPE_CHECKING:
    from collections.abc import Sequence

CODE, HIDDEN = 16, 128
HIDDEN_VARIANCE, PIXEL_VARIANCE = 0.2, 0.03
STEPS, RATE = 50, 0.005  # of Langevin's; the other E-steps have as many sweeps at most
SCORES = "Langevin's E-steps", "likeliest states", "principal components"


class Decoder(nn.Module):
    """A code z ~ N(0, I), hidden units, and pixels, each Gaussian around what the one before predicts."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.code, self.hidden = StandardGaussianNode(CODE), IsotropicGaussianNode(HIDDEN, variance=HIDDEN_VARIANCE)
        self.pixels = IsotropicGaussianNode(len(mean), variance=PIXEL_VARIANCE)
        self.hidden.logvar.requires_grad_(False), self.pixels.logvar.requires_grad_(False)
        self.below, last = nn.Linear(CODE, HIDDEN), nn.Linear(HIDDEN, len(mean))
        self.above = nn.Sequential(nn.Tanh(), last)
        nn.init.normal_(self.below.weight, std=CODE**-0.5)
        last.bias = nn.Parameter(mean.clone())

    def start(self, x: Tensor) -> None:
        """Clamp the pixels; the code starts at its mean, and the hidden units at their prediction."""
        self.hidden.init(self.below(self.code.init(x.new_zeros(len(x), CODE))))
        self.pixels.init(x)

    def energy(self) -> Tensor:
        """Free energy per image."""
        return (
            self.code.energy(torch.zeros_like(self.code.value))
            + self.hidden.energy(self.below(self.code.value))
            + self.pixels.energy(self.above(self.hidden.value))
        )

    def learn(self, x: Tensor, epochs: int, seed: int, langevin: bool) -> None:
        """EM, with E-steps that draw states, or that find the likeliest ones."""
        generator = torch.Generator().manual_seed(seed)
        em = pyro.EM(
            self.energy, [self.code.value, self.hidden.value],
            torch.optim.Adam(list(pyro.get_mstep_params(self)), 3e-3), start=self.start, steps=STEPS,
            method=Langevin(RATE, generator=generator) if langevin else Accelerated(), tol=None if langevin else 0.1,
        )  # fmt: skip
        for _ in range(epochs):
            for _ in em.epoch(x, batch_size=64, generator=generator):
                pass

    def scores(self, x: Tensor) -> Tensor:
        """Free energy of every image at its likeliest states, ``[N]``."""
        with torch.no_grad():
            self.start(x)
        loop = pyro.InferenceLoop(self.energy, [self.code.value, self.hidden.value], method=Accelerated())
        loop.run(500, tol=1e-3)
        return loop.energy()


def left_over(train: Tensor, x: Tensor) -> Tensor:
    """Square of what as many principal components as the code has numbers leave of every image."""
    pca = PCA(CODE).fit(train)
    return (x - torch.from_numpy(pca.inverse_transform(pca.transform(x)))).square().sum(1)


def plot(results: dict[int, tuple[list[float], Tensor, Tensor]], path: Path) -> None:
    """Draw the scores of the first kind that was left out, and the AUCs of all."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    histogram, bars = figure.subplots(1, 2)
    kind, (_, known, strange) = next(iter(results.items()))
    for of, name in ((known, "other digits"), (strange, f"digit {kind}, never learned")):
        histogram.hist(of.tolist(), bins=30, density=True, alpha=0.6, label=name)
    histogram.set(xlabel=f"free energy (nats), {SCORES[0]}", ylabel="density", title="Test images")
    histogram.legend()
    for i, name in enumerate(SCORES):
        aucs = [found[i] for found, *_ in results.values()]
        bars.bar([x + 0.27 * (i - 1) for x in range(len(results))], aucs, 0.27, label=name)
    bars.set(xlabel="digit left out", ylabel="AUC", ylim=(0.5, 1.0), title="One digit told from nine")
    bars.set_xticks(range(len(results)), [str(k) for k in results])
    bars.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the command line.

    Returns:
        The mean AUC over what was left out, by score.
    """
    p = argparse.ArgumentParser(description="Tell images of a kind that was never learned by their free energy.")
    p.add_argument("--kinds", type=int, nargs="+", default=[*range(10)], choices=range(10), help="to leave out (all)")
    p.add_argument("--epochs", type=int, default=20, help="passes over the training images (20)")
    p.add_argument("--seed", type=int, default=0, help="of the weights, the order of images and the noise (0)")
    p.add_argument("--plot", type=Path, default=Path("anomalies.png"), metavar="FILE", help="picture (anomalies.png)")
    args = p.parse_args(argv)
    data = load_digits()
    results = {}
    for kind in args.kinds:
        train, strange = data.train_x[data.train_labels != kind], data.test_labels == kind
        found = []
        for langevin in (True, False):
            torch.manual_seed(args.seed)
            net = Decoder(train.mean(0))
            net.learn(train, args.epochs, args.seed, langevin)
            found.append(net.scores(data.test_x))
        aucs = [float(roc_auc_score(strange, score)) for score in (*found, left_over(train, data.test_x))]
        print(f"digit {kind} left out: AUC", "; ".join(f"{name} {a:.3f}" for name, a in zip(SCORES, aucs, strict=True)))
        results[kind] = aucs, found[0][~strange], found[0][strange]
    means = {name: sum(aucs[i] for aucs, *_ in results.values()) / len(results) for i, name in enumerate(SCORES)}
    print("mean AUC:", "; ".join(f"{name} {a:.3f}" for name, a in means.items()))
    plot(results, args.plot)
    print(f"drawn: {args.plot}")
    return means


if __name__ == "__main__":
    main()
