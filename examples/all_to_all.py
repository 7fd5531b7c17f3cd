"""A network in which every unit predicts every other, and which is asked whatever is left open.

Pixels, hidden units and labels of scikit-learn's digits are one state x, and every unit but itself predicts a unit:
mu = W tanh(x) + b with a diagonal of zeros (arXiv:2201.13180). There is no input and no output: training clamps pixels
and labels, and a question is what is clamped. Given the pixels, inference finds the label; given the label and the
upper half of an image, the lower half; given a noisy image, all of it. The picture shows the last two.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyromancy as pyro
from digits import Data, load_digits
from pictures import draw_rows
from pyromancy.methods import Descent, Known
from pyromancy.nodes import StandardGaussianNode

CLASSES, SHOWN = 10, 8


class AllToAll(nn.Module):
    """Units that predict each other.

    Args:
        pixels: the first units.
        hidden: those between the pixels and the labels.
    """

    others: Tensor

    def __init__(self, pixels: int, hidden: int) -> None:
        super().__init__()
        units = pixels + hidden + CLASSES
        self.pixels, self.labels = slice(0, pixels), slice(pixels + hidden, units)
        self.units = StandardGaussianNode(units)
        self.weight, self.bias = (
            nn.Parameter(0.3 * torch.randn(units, units) / units**0.5),
            nn.Parameter(torch.zeros(units)),
        )
        self.register_buffer("others", 1 - torch.eye(units))

    def energy(self) -> Tensor:
        """Free energy per sample, ``[B]``."""
        x = self.units.value
        return self.units.energy(F.linear(torch.tanh(x), self.weight * self.others, self.bias))

    def together(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """States of all units: these pixels and labels, and hidden units at 0."""
        hidden = pixels.new_zeros(len(pixels), self.labels.start - self.pixels.stop)
        return torch.cat([pixels, hidden, labels], 1)

    def answer(self, state: Tensor, known: Tensor, args: argparse.Namespace) -> Tensor:
        """What inference makes of states of which some units are known, bool ``[1, units]``."""
        self.units.init(state)
        pyro.InferenceLoop(self.energy, [self.units.value], method=self.method(known, args)).run(args.answer_steps)
        return self.units.value.detach()

    def method(self, known: Tensor, args: argparse.Namespace) -> Descent:
        """Descent that leaves known units as they are."""
        return Descent(lr=args.e_lr, constraints={self.units: (Known(known),)})

    def known(self, *what: slice) -> Tensor:
        """A mask of units, bool ``[1, units]``."""
        mask = torch.zeros(1, len(self.bias), dtype=torch.bool)
        for part in what:
            mask[:, part] = True
        return mask


def learn(net: AllToAll, data: Data, args: argparse.Namespace) -> list[float]:
    """Train on pixels with their labels; returns the test accuracy after every epoch."""
    clamped = net.known(net.pixels, net.labels)
    optimizer = torch.optim.AdamW([net.weight, net.bias], args.m_lr, weight_decay=args.decay)
    em = pyro.EM(
        net.energy,
        [net.units.value],
        optimizer,
        start=net.units.init,
        steps=args.steps,
        method=net.method(clamped, args),
    )
    states = net.together(data.train_x, F.one_hot(data.train_labels, CLASSES).float())
    generator = torch.Generator().manual_seed(args.seed)
    accuracies = []
    for epoch in range(1, args.epochs + 1):
        for _ in em.epoch(states, batch_size=args.batch_size, generator=generator):
            pass
        accuracies.append(accuracy(net, data, args))
        print(f"epoch {epoch:2}  test accuracy {accuracies[-1]:.2%}")
    return accuracies


def accuracy(net: AllToAll, data: Data, args: argparse.Namespace) -> float:
    """The share of test images whose label inference finds, from labels at an even 0.1."""
    even = data.test_x.new_full((len(data.test_x), CLASSES), 1 / CLASSES)
    found = net.answer(net.together(data.test_x, even), net.known(net.pixels), args)
    return (found[:, net.labels].argmax(1) == data.test_labels).double().mean().item()


def complete(net: AllToAll, data: Data, args: argparse.Namespace) -> dict[str, Tensor]:
    """Test images, what is given of them, and what inference makes of it: of an upper half, and of noise."""
    half = data.test_x.shape[1] // 2
    images, labels = data.test_x, F.one_hot(data.test_labels, CLASSES).float()
    upper = images.clone()
    upper[:, half:] = data.train_x.mean(0)[half:]
    noisy = images + 0.3 * torch.randn_like(images)
    found = net.answer(net.together(upper, labels), net.known(slice(0, half), net.labels), args)
    # noise is what the units, of unit variance, are not sure of: the image may move, from the noisy one on
    cleaned = net.answer(net.together(noisy, labels), net.known(net.labels), args)
    pixels = slice(net.pixels.start, net.pixels.stop)
    return {
        "image": images, "upper half": upper, "completed": found[:, pixels],
        "noisy": noisy, "cleaned": cleaned[:, pixels],
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the command line.

    Returns:
        The test accuracy, and mean squares per pixel: of the mean image for lower halves, of completed ones, of noise,
        and of what was cleaned.
    """
    p = argparse.ArgumentParser(description="A network in which every unit predicts every other, on digits.")
    p.add_argument("--hidden", type=int, default=128, help="hidden units (128)")
    p.add_argument("--epochs", type=int, default=30, help="passes over the training images (30)")
    p.add_argument("--batch-size", type=int, default=64, help="images per batch (64)")
    p.add_argument("--steps", type=int, default=20, metavar="T", help="E-steps per batch (20)")
    p.add_argument("--answer-steps", type=int, default=200, help="of a question (200)")
    p.add_argument("--e-lr", type=float, default=0.1, help="rate of the E-steps (0.1)")
    p.add_argument("--m-lr", type=float, default=1e-3, help="rate of the M-steps, AdamW's (0.001)")
    p.add_argument("--decay", type=float, default=0.01, help="of weights (0.01)")
    p.add_argument("--seed", type=int, default=0, help="of the weights and the order of the images (0)")
    p.add_argument("--plot", type=Path, default=Path("all_to_all.png"), metavar="FILE", help="picture (all_to_all.png)")
    args = p.parse_args(argv)
    torch.manual_seed(args.seed)
    data = load_digits()
    net = AllToAll(data.train_x.shape[1], args.hidden)
    found = {"accuracy": learn(net, data, args)[-1]}
    rows = complete(net, data, args)
    half = rows["image"].shape[1] // 2
    for name in ("upper half", "completed", "noisy", "cleaned"):
        error = rows[name] - rows["image"]
        found[name] = (error[:, half:] if name in ("upper half", "completed") else error).square().mean().item()
        print(f"{name:10}  mean square {found[name]:.4f} from the image")
    draw_rows({name: images[:SHOWN].clamp(0, 1) for name, images in rows.items()}, SHOWN, args.plot)
    print(f"drawn: {args.plot}")
    return found


if __name__ == "__main__":
    main()
