"""Learn a dictionary of image patches whose codes are sparse.

    python examples/sparse_coding.py       # the photographs that scikit-learn ships, offline; draws sparse_coding.png

A code z with a Laplace prior predicts a patch x through atoms of norm 1: the energy is 1/2 |x - W z|^2 + weight |z|_1.
E-steps are FISTA's (https://doi.org/10.1137/080716542), a rate with momentum and a proximal step, and end at codes that
are those of the lasso, with zeros where it has zeros; M-steps move the atoms (Olshausen and Field,
https://doi.org/10.1038/381607a0), which come to be edges. The cost of patches that were not learned from, with the
learned atoms, is printed beside that with scikit-learn's own dictionary and with random atoms.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode
from sklearn.feature_extraction.image import extract_patches_2d
from torch import Tensor, nn

import pyromancy as pyro
from pyromancy.methods import Accelerated, Shrink
from pyromancy.nodes import FloatNode, StandardGaussianNode

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE, ATOMS, WEIGHT = 8, 128, 1.0
SWEEPS, EXACT = 50, 600  # of FISTA, to learn and to compare with the lasso
COMPARED = 500  # patches


class Patches(nn.Module):
    """Codes, and the patches that they predict."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.patch = FloatNode(ATOMS), StandardGaussianNode(SIDE * SIDE)
        self.atoms = nn.Linear(ATOMS, SIDE * SIDE, bias=False)
        nn.init.normal_(self.atoms.weight)
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        """Give every atom norm 1."""
        self.atoms.weight.div_(self.atoms.weight.norm(dim=0))

    def energy(self) -> Tensor:
        """Of every patch, without the prior, which is a constraint of the method."""
        return self.patch.energy(self.atoms(self.code.value))

    def infer(self, x: Tensor, sweeps: int) -> pyro.InferenceLoop:
        """FISTA, from codes of 0, for patches ``[N, 64]``."""
        self.code.init(x.new_zeros(len(x), ATOMS)), self.patch.init(x)
        rate = 1 / torch.linalg.matrix_norm(self.atoms.weight.detach(), 2).item() ** 2
        fista = Accelerated(rate, coordinates="states", constraints={self.code: Shrink(WEIGHT)})
        loop = pyro.InferenceLoop(self.energy, [self.code.value], method=fista)
        loop.run(sweeps)
        return loop

    def cost(self) -> float:
        """Energy and prior, the mean over the patches of the last inference."""
        with torch.no_grad():
            return (self.energy() + WEIGHT * self.code.value.abs().sum(1)).mean().item()

    def learn(self, x: Tensor, epochs: int, rate: float = 3.0) -> None:
        """EM, whose rate falls to a twentieth, and atoms of norm 1 after every step."""
        weights = list(self.atoms.parameters())
        optimizer = torch.optim.SGD(weights, rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, epochs)
        for epoch in range(1, epochs + 1):
            cost = 0.0
            for rows in torch.randperm(len(x)).split(256):
                loop = self.infer(x[rows], SWEEPS)
                optimizer.zero_grad(), loop.backward(weights), optimizer.step()
                cost += self.cost() * len(rows) / len(x)
                self.normalize()
            schedule.step()
            if epoch % 5 == 0:
                print(f"epoch {epoch:2}  cost of a patch {cost:.3f}")


def load_patches(count: int) -> Tensor:
    """Of the two photographs, ``[count, 64]``: each of mean 0, and of variance 1 together, in random order."""
    images = [image.mean(2) / 255 for image in load_sample_images().images]
    parts = [extract_patches_2d(image, (SIDE, SIDE), max_patches=count // 2, random_state=0) for image in images]
    found = np.concatenate(parts).reshape(-1, SIDE * SIDE)
    found -= found.mean(1, keepdims=True)
    return torch.from_numpy(found / found.std())[torch.randperm(len(found))]


def plot(atoms: Tensor, use: Tensor, path: Path) -> None:
    """Draw atoms, ``[64, 128]``, those that are used most first."""
    figure = Figure(figsize=(8, 4.3), layout="constrained")
    figure.suptitle(f"{ATOMS} atoms of patches of {SIDE} x {SIDE}, the most used first")
    order = use.argsort(descending=True)
    for axes, atom in zip(figure.subplots(ATOMS // 16, 16).flat, atoms.T[order], strict=True):
        axes.imshow(atom.view(SIDE, SIDE).tolist(), cmap="gray")
        axes.axis("off")
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> tuple[dict[str, float], float]:
    """Run the command line.

    Returns:
        The cost of patches that were not learned from, by dictionary, and how far their codes are from the lasso's.
    """
    p = argparse.ArgumentParser(description="Learn a dictionary of image patches whose codes are sparse.")
    p.add_argument("--patches", type=int, default=10_000, help=f"to learn from; {COMPARED} more to compare (10000)")
    p.add_argument("--epochs", type=int, default=20, help="passes over the patches (20)")
    p.add_argument("--seed", type=int, default=0, help="of the atoms and of the order of patches (0)")
    p.add_argument(
        "--plot", type=Path, default=Path("sparse_coding.png"), metavar="FILE", help="picture (sparse_coding.png)"
    )
    args = p.parse_args(argv)
    torch.manual_seed(args.seed)
    x = load_patches(args.patches + COMPARED)
    x, held = x[:-COMPARED], x[-COMPARED:]
    net = Patches()
    random = net.atoms.weight.detach().clone()
    net.learn(x.float(), args.epochs)
    theirs = MiniBatchDictionaryLearning(ATOMS, alpha=WEIGHT, max_iter=5, batch_size=256, random_state=args.seed).fit(x)
    of_sklearn = torch.nn.functional.normalize(torch.from_numpy(theirs.components_)).T

    net.double()
    learned = net.atoms.weight.detach().clone()
    costs = {}
    for name, atoms in (("random", random), ("scikit-learn's", of_sklearn), ("learned", learned)):
        with torch.no_grad():
            net.atoms.weight.copy_(atoms)
        net.infer(held, EXACT)
        costs[name] = net.cost()
    print(f"cost of {COMPARED} other patches:", "; ".join(f"{name} atoms {c:.3f}" for name, c in costs.items()))
    codes = net.code.value.detach()
    lasso = sparse_encode(held.numpy(), learned.T.numpy(), algorithm="lasso_lars", alpha=WEIGHT)
    off = (codes - torch.from_numpy(lasso)).abs().max().item()
    print(f"their codes are those of scikit-learn's lasso to {off:.1e}; {(codes == 0).double().mean():.1%} are 0")
    plot(learned, codes.abs().sum(0), args.plot)
    print(f"drawn: {args.plot}")
    return costs, off


if __name__ == "__main__":
    main()
