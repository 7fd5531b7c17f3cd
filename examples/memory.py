"""Store digits in a predictive coding network, and recall them from a part or from noise.

    python examples/memory.py                 # a hundred of scikit-learn's digits, offline; draws memory.png
    python examples/memory.py --data DIR      # of MNIST, from its IDX files in DIR, gzipped or not

A code of numbers that are 0 or above predicts the pixels through unit-norm atoms. A Laplace prior wants codes to be
sparse, and the sparsest way to write a hundred images is an atom for each: EM finds that from random atoms. To recall,
the pixels that are known are clamped, and inference finds the code and the other pixels, by FISTA on both at once.

Errors are mean squares per missing pixel, or per pixel where all are noisy. Beside them are those of a modern Hopfield
network (https://arxiv.org/abs/2008.02217), at the best of several temperatures for every task, with attention by
products as published, or by distances, which comes to a search for the nearest image; and of a classical one (Hopfield
1982, of binary images, against which its errors are measured). All put the known pixels back in every step.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import pyromancy as pyro
from digits import load_or_stop
from pictures import draw_rows
from pyromancy.methods import Accelerated, Known, Range, Shrink
from pyromancy.nodes import FloatNode, StandardGaussianNode

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGES, ATOMS, SHOWN = 100, 150, 8
PRIOR = 0.3  # weight of the sum of a code; a tenth of it where known pixels are free of noise
INFERENCE, SWEEPS = 10, 1000  # in every round of storing, from the codes of the one before; and to recall
BETAS = [0.1 * 2**i for i in range(12)]  # inverse temperatures
MEMORIES = "this network", "modern Hopfield", "by distance", "Hopfield"


class Memory(nn.Module):
    """A sparse code, its atoms, and the pixels that it predicts."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.code, self.pixels = FloatNode(ATOMS), StandardGaussianNode(pixels)
        self.atoms = nn.Linear(ATOMS, pixels, bias=False)
        nn.init.normal_(self.atoms.weight, 0.5, 0.5)
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        """Give every atom norm 1, or else codes would shrink and atoms grow."""
        self.atoms.weight.div_(self.atoms.weight.norm(dim=0))

    def energy(self) -> Tensor:
        """Free energy per image, without the prior, which is a constraint of the method."""
        return self.pixels.energy(self.atoms(self.code.value))

    def inference(self, prior: float, known: Tensor | None = None) -> pyro.InferenceLoop:
        """FISTA on the code and, where a mask tells which pixels are known, on the others."""
        states = [self.code.value]
        constraints: dict[Tensor | nn.Module, tuple[Known | Range | Shrink, ...]]
        constraints = {self.code: (Shrink(prior), Range(0, None))}
        curvature = torch.linalg.matrix_norm(self.atoms.weight.detach(), 2).item() ** 2
        if known is not None:
            states, curvature = [*states, self.pixels.value], curvature + 1
            constraints[self.pixels] = (Known(known),)
        method = Accelerated(1 / curvature, coordinates="states", constraints=constraints)
        return pyro.InferenceLoop(self.energy, states, method=method)

    def store(self, images: Tensor, rounds: int, rate: float = 0.01) -> None:
        """EM on the images: a little inference and a step of Adam on the atoms, in turns."""
        weights = list(self.atoms.parameters())
        optimizer = torch.optim.Adam(weights, rate)
        self.code.init(torch.zeros(len(images), ATOMS)), self.pixels.init(images)
        for _ in range(rounds):
            loop = self.inference(PRIOR)
            loop.run(INFERENCE)
            optimizer.zero_grad(), loop.backward(weights), optimizer.step()
            self.normalize()

    def recall(self, given: Tensor, known: Tensor | None = None) -> Tensor:
        """Images from some of their pixels, or from all of them with noise.

        Args:
            given: ``[N, pixels]``.
            known: which of them are known, and kept; None where all are noisy.
        """
        self.code.init(torch.zeros(len(given), ATOMS))
        self.pixels.init(given if known is None else given * known)
        self.inference(PRIOR if known is None else PRIOR / 10, known).run(SWEEPS)
        with torch.no_grad():
            found: Tensor = self.atoms(self.code.value)
        return found if known is None else torch.where(known, given, found)


def modern_hopfield(
    images: Tensor, given: Tensor, known: Tensor | None, beta: float, distance: bool, steps: int = 10
) -> Tensor:
    """Softmax attention over the images, again and again: by products, or by distances of the known pixels."""
    mask = torch.ones_like(given) if known is None else known.float()
    state = given * mask
    for _ in range(steps):
        scores = (mask * state) @ images.T - 0.5 * mask @ images.square().T if distance else state @ images.T
        state = (beta * scores).softmax(1) @ images
        state = state if known is None else torch.where(known, given, state)
    return state


def hopfield(images: Tensor, given: Tensor, known: Tensor | None, steps: int = 10) -> Tensor:
    """Signs by Hebb's weights, one pixel after the other; of images and to images in {0, 1}."""
    patterns = 2 * images - 1
    weights = (patterns.T @ patterns).fill_diagonal_(0)
    free = torch.ones_like(given, dtype=torch.bool) if known is None else ~known
    state = torch.where(given > 0.5, 1.0, -1.0)
    if known is not None:
        state[free] = -1  # the background
    for _ in range(steps):
        for i in range(state.shape[1]):
            field = state @ weights[i]
            state[:, i] = torch.where(free[:, i] & (field != 0), field.sign(), state[:, i])
    return (state + 1) / 2


def error(found: Tensor, images: Tensor, known: Tensor | None) -> float:
    """Mean square of the pixels that were not known."""
    square = (found - images).square()
    return (square if known is None else square[~known]).mean().item()


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the command line.

    Returns:
        By task, the error of every memory.
    """
    p = argparse.ArgumentParser(description="Store digits, and recall them from a part or from noise.")
    p.add_argument("--data", type=Path, metavar="DIR", help="MNIST's IDX files (else scikit-learn's digits)")
    p.add_argument("--rounds", type=int, default=400, help="EM rounds to store the images (400)")
    p.add_argument("--noise", type=float, default=0.4, help="its standard deviation; pixels are in [0, 1] (0.4)")
    p.add_argument("--seed", type=int, default=0, help="of the atoms, masks and noise (0)")
    p.add_argument("--plot", type=Path, default=Path("memory.png"), metavar="FILE", help="picture (memory.png)")
    args = p.parse_args(argv)
    data = load_or_stop(args.data, p)
    torch.manual_seed(args.seed)
    images = data.train_x[:IMAGES]
    pixels = images.shape[1]
    memory = Memory(pixels)
    memory.store(images, args.rounds)
    with torch.no_grad():
        nearest = (memory.atoms.weight.T @ (images / images.norm(dim=1, keepdim=True)).T).amax(0)
    print(
        f"{len(images)} images of {data.name} in {ATOMS} atoms; the mean cosine of an image and its nearest atom",
        end=" ",
    )
    print(f"is {nearest.mean():.3f}")

    tasks: dict[str, tuple[Tensor, Tensor | None]] = {
        "half of the pixels": (images, torch.rand_like(images) < 0.5),
        "the upper half": (images, (torch.arange(pixels) < pixels // 2).expand(len(images), -1)),
        f"noise of {args.noise:g}": (images + args.noise * torch.randn_like(images), None),
    }
    errors, rows = {}, {"stored": images}
    print(f"{'error per pixel, from':22}", *MEMORIES, sep="  ")
    for task, (given, known) in tasks.items():
        found = memory.recall(given, known)
        modern, distance = (
            min(error(modern_hopfield(images, given, known, beta, by), images, known) for beta in BETAS)
            for by in (False, True)
        )
        binary = (images > 0.5).float()
        signs = error(hopfield(binary, given if known is None else binary, known), binary, known)
        errors[task] = dict(zip(MEMORIES, (error(found, images, known), modern, distance, signs), strict=True))
        print(f"{task:22}", *(f"{e:{len(name)}.2g}" for name, e in errors[task].items()), sep="  ")
        rows |= {task: given if known is None else torch.where(known, given, 0.5), f"recalled from {task}": found}
    draw_rows(rows, SHOWN, args.plot)
    print(f"drawn: {args.plot}")
    return errors


if __name__ == "__main__":
    main()
