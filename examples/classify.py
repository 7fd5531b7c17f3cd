"""Classify digits by a predictive coding network that ends in a cross-entropy, beside one that ends in squares.

    python examples/classify.py                 # scikit-learn's digits, offline; draws classify.png
    python examples/classify.py --data DIR      # MNIST, from its IDX files in DIR, gzipped or not

Two networks of the same weights and the same batches learn by `pyromancy.EM`. One has a `CategoricalNode` at its end,
which takes labels as they are and predicts logits; the other a Gaussian one, which takes one-hot rows. The picture
shows test accuracies by epoch, how often the categorical network is right where it says so (a reliability diagram:
https://arxiv.org/abs/1706.04599), and the test images that it gives the least probability to their label.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import pyromancy as pyro
from digits import Data, load_or_stop

if TYPE_CHECKING:
    from collections.abc import Sequence

BINS = 10  # of probabilities
WORST = 8  # images that are drawn


def learn(data: Data, output: str, args: argparse.Namespace) -> tuple[Tensor, list[float]]:
    """Train a network.

    Args:
        data: to learn from, and to test on.
        output: kind of its last node, as `pyromancy.networks.mlp` has it.
        args: of the command line.

    Returns:
        The predictions of the test images, ``[N, classes]``, and the accuracy on them after every epoch.
    """
    torch.manual_seed(args.seed)
    classes = int(data.train_labels.max()) + 1
    net = pyro.networks.mlp([data.train_x.shape[1], *args.hidden, classes], output=output)
    em = pyro.EM(
        net.energy, net.e_params(), torch.optim.Adam(net.m_params(), args.m_lr), start=net.start,
        steps=args.steps, lr=args.e_lr,
    )  # fmt: skip
    targets = data.train_labels if output == "categorical" else F.one_hot(data.train_labels, classes).float()
    generator = torch.Generator().manual_seed(args.seed)
    accuracies, predictions = [], torch.empty(0)
    for epoch in range(1, args.epochs + 1):
        for _ in em.epoch(data.train_x, targets, batch_size=args.batch_size, generator=generator):
            pass
        with torch.no_grad():
            predictions = net.predict(data.test_x)
        if not predictions.isfinite().all():
            raise SystemExit(f"training diverged in epoch {epoch}; lower --e-lr or --m-lr")
        accuracies.append((predictions.argmax(1) == data.test_labels).double().mean().item())
        print(f"{output:11}  epoch {epoch:2}  test accuracy {accuracies[-1]:.2%}")
    return predictions, accuracies


def reliability(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How often predictions are right, by the probability that they give themselves.

    Args:
        probabilities: ``[N, classes]``.
        labels: ``[N]``.

    Returns:
        Of every bin of probabilities that has samples their number, mean probability, and share that is right.
    """
    confidence, predicted = probabilities.max(1)
    index = (confidence * BINS).long().clamp(max=BINS - 1)
    count, sure, right = (
        torch.zeros(BINS).index_add_(0, index, x)
        for x in (torch.ones_like(confidence), confidence, (predicted == labels).float())
    )
    used = count > 0
    return count[used], sure[used] / count[used], right[used] / count[used]


def plot(data: Data, logits: Tensor, accuracies: dict[str, list[float]], path: Path) -> None:
    """Draw what the networks have learned.

    Args:
        data: that was tested on.
        logits: of its images by the categorical network, ``[N, classes]``.
        accuracies: by epoch, for each network.
        path: where to; its ending is the format.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    grid = figure.add_gridspec(1, 3)
    left, middle, right = (figure.add_subfigure(grid[0, i]) for i in range(3))
    axes = left.subplots()
    for name, values in accuracies.items():
        axes.plot(range(1, len(values) + 1), [100 * a for a in values], "o-", label=name)
    axes.set(xlabel="epoch", ylabel="%", title="Test accuracy")
    axes.legend()
    axes.grid(alpha=0.3)
    probabilities = logits.softmax(1)
    axes = middle.subplots()
    _, sure, share = reliability(probabilities, data.test_labels)
    axes.plot([0, 1], [0, 1], color="0.7")
    axes.plot(sure.tolist(), share.tolist(), "o-", color="black")
    axes.set(xlabel="probability of the predicted class", ylabel="share that is right", title="Reliability")
    axes.grid(alpha=0.3)
    of_label = probabilities.gather(1, data.test_labels.unsqueeze(1)).squeeze(1)
    side = math.isqrt(data.test_x.shape[1])
    right.suptitle("Least probable labels")
    for image, one in zip(of_label.argsort()[:WORST].tolist(), right.subplots(2, WORST // 2).flat, strict=False):
        one.imshow(data.test_x[image].view(side, -1).tolist(), cmap="gray_r")
        one.set_title(f"{data.test_labels[image]}: {of_label[image]:.0e}\nsays {logits[image].argmax()}", fontsize=8)
        one.axis("off")
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run the command line.

    Returns:
        The accuracies of the two networks, by epoch.
    """
    p = argparse.ArgumentParser(description="Classify digits: a cross-entropy output beside a Gaussian one.")
    p.add_argument("--data", type=Path, metavar="DIR", help="MNIST's IDX files (else scikit-learn's digits)")
    p.add_argument("--epochs", type=int, default=10, help="passes over the training images (10)")
    p.add_argument("--batch-size", type=int, default=64, help="images per batch (64)")
    p.add_argument("--steps", type=int, default=20, metavar="T", help="E-steps per batch (20)")
    p.add_argument("--e-lr", type=float, default=0.1, help="rate of the E-steps (0.1)")
    p.add_argument("--m-lr", type=float, default=1e-3, help="rate of the M-steps, Adam's (0.001)")
    p.add_argument("--hidden", type=int, nargs="+", default=[256, 256], metavar="N", help="hidden widths (256 256)")
    p.add_argument("--seed", type=int, default=0, help="of the weights and the order of the images (0)")
    p.add_argument("--plot", type=Path, default=Path("classify.png"), metavar="FILE", help="picture (classify.png)")
    args = p.parse_args(argv)
    data = load_or_stop(args.data, p)
    print(f"{data.name}: {len(data.train_x):,} images to learn from, {len(data.test_x):,} to test on")
    found = {output: learn(data, output, args) for output in ("categorical", "gaussian")}
    accuracies = {output: values for output, (_, values) in found.items()}
    logits = found["categorical"][0]
    print(f"negative log-likelihood of the test labels: {F.cross_entropy(logits, data.test_labels):.4f} nats")
    plot(data, logits, accuracies, args.plot)
    print(f"drawn: {args.plot}")
    return accuracies


if __name__ == "__main__":
    main()
