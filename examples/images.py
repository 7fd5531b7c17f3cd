"""Convolutional networks by predictive coding: a small VGG and a small ResNet on digits, beside backpropagation.

Both are an `nn.Sequential` that `pyromancy.networks.from_sequential` cuts into nodes: after every convolution of the
VGG (arXiv:1409.1556), after every block of the ResNet (arXiv:1603.05027, activations first). Each is trained twice from
the same weights on the same batches, by `pyromancy.EM` and by backpropagation of its cross-entropy. The picture shows
test accuracies by epoch, and what every node's energy comes to over the E-steps of a batch.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import pyromancy as pyro
from digits import Data, load_or_stop
from pyromancy.networks import Skip


def vgg(classes: int, widths: Sequence[int] = (32, 64, 128)) -> nn.Sequential:
    """Convolutions of 3 x 3, all but the first after pooling, which halves the image; the last are pooled to one."""
    layers: list[nn.Module] = [nn.Conv2d(1, widths[0], 3, padding=1)]
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(fan_in, fan_out, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], classes))


def resnet(classes: int, widths: Sequence[int] = (32, 64)) -> nn.Sequential:
    """Residual blocks of a convolution, two for each width, the first of which halves the image."""

    def block(fan_in: int, fan_out: int) -> Skip:
        stride = 1 if fan_in == fan_out else 2
        branch = nn.Sequential(nn.ReLU(), nn.Conv2d(fan_in, fan_out, 3, stride, padding=1))
        return Skip(branch, None if stride == 1 else nn.Conv2d(fan_in, fan_out, 1, stride))

    blocks: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([widths[0], *widths]):
        blocks += [block(fan_in, fan_out), block(fan_out, fan_out)]
    end = nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], classes)
    return nn.Sequential(nn.Conv2d(1, widths[0], 3, padding=1), *blocks, *end)


NETWORKS = {"vgg": vgg, "resnet": resnet}


def images_of(rows: Tensor) -> Tensor:
    """Square images of one channel."""
    side = math.isqrt(rows.shape[1])
    return rows.view(-1, 1, side, side)


def accuracy(module: nn.Module, x: Tensor, labels: Tensor) -> float:
    """The share of images that a network classifies as labelled, in evaluation mode."""
    module.eval()
    parts = zip(x.split(500), labels.split(500), strict=True)
    with torch.no_grad():
        right = sum((module(part).argmax(1) == of).sum().item() for part, of in parts)
    module.train()
    return right / len(x)


def one_cycle(optimizer: torch.optim.Optimizer, images: int, args: argparse.Namespace) -> OneCycleLR:
    """Rates that rise to the highest within the first fifth of all batches, and then fall to nearly none."""
    batches = -(-images // args.batch_size)
    # one more, as a schedule must not be at its end after the last batch
    return OneCycleLR(optimizer, args.m_lr, total_steps=args.epochs * batches + 1, pct_start=0.2, cycle_momentum=False)


def learn(
    epoch: Callable[[torch.Generator], None], module: nn.Module, data: Data, name: str, args: argparse.Namespace
) -> list[float]:
    """Run a trainer's epochs, each a call of `epoch`, and return the test accuracy after each."""
    generator = torch.Generator().manual_seed(args.seed)
    test, accuracies = images_of(data.test_x), list[float]()
    for number in range(1, args.epochs + 1):
        begin = time.perf_counter()
        epoch(generator)
        took = time.perf_counter() - begin
        accuracies.append(accuracy(module, test, data.test_labels))
        print(f"{name:28}  epoch {number:2}  test accuracy {accuracies[-1]:.2%}  {took:.0f} s", flush=True)
    return accuracies


def learn_both(name: str, data: Data, args: argparse.Namespace) -> tuple[dict[str, list[float]], Tensor]:
    """Train a network in both ways.

    Returns:
        The accuracies by epoch, of each way, and the mean energy of each of its nodes but the first, ``[nodes, steps +
        1]``, over the E-steps of a batch of test images.
    """
    torch.manual_seed(args.seed)
    module = NETWORKS[name](int(data.train_labels.max()) + 1)
    twin = copy.deepcopy(module)
    x, labels = images_of(data.train_x), data.train_labels
    net = pyro.networks.from_sequential(module, output="categorical", variance=args.variance)
    m_opt = torch.optim.Adam(net.m_params(), args.m_lr)
    em = pyro.EM(
        net.energy, net.e_params(), m_opt, start=net.start, steps=args.steps, method=pyro.methods.Accelerated()
    )
    rates = one_cycle(m_opt, len(x), args)

    def by_inference(generator: torch.Generator) -> None:
        for part in em.epoch(x, labels, batch_size=args.batch_size, generator=generator):
            for _ in range(part.batches):
                rates.step()

    optimizer = torch.optim.Adam(twin.parameters(), args.m_lr)
    rates_there = one_cycle(optimizer, len(x), args)

    def by_backpropagation(generator: torch.Generator) -> None:
        for rows in torch.randperm(len(x), generator=generator).split(args.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(twin(x[rows]), labels[rows]).backward()
            optimizer.step()
            rates_there.step()

    found = {f"{name}, predictive coding": learn(by_inference, net, data, f"{name}, predictive coding", args)}
    found[f"{name}, backpropagation"] = learn(by_backpropagation, twin, data, f"{name}, backpropagation", args)
    net.eval()
    net.start(images_of(data.test_x)[: args.batch_size], data.test_labels[: args.batch_size])
    loop = pyro.InferenceLoop(net.energy, net.e_params(), method=pyro.methods.Accelerated())
    energies = [net.node_energies().detach().mean(1)]
    for _ in range(args.steps):
        loop.run(1)
        energies.append(net.node_energies().detach().mean(1))
    return found, torch.stack(energies, 1)


def plot(accuracies: dict[str, list[float]], energies: dict[str, Tensor], path: Path) -> None:
    """Draw accuracies by epoch, and energies by E-step for each network."""
    figure = Figure(figsize=(4.5 * (1 + len(energies)), 4), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(energies))
    for name, values in accuracies.items():
        first.plot(range(1, len(values) + 1), [100 * a for a in values], "--" if "back" in name else "-", label=name)
    first.set(xlabel="epoch", ylabel="%", title="Test accuracy")
    first.legend()
    for axes, (name, of_nodes) in zip(others, energies.items(), strict=True):
        for number, values in enumerate(of_nodes.tolist(), 1):
            axes.semilogy([max(v, 1e-9) for v in values], label=f"node {number}")
        axes.set(xlabel="E-step", title=f"{name}: energy of nodes, per sample", ylim=(1e-7, None))
        axes.legend()
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run the command line.

    Returns:
        The accuracies of all networks, by epoch.
    """
    p = argparse.ArgumentParser(description="Convolutional networks on digits: predictive coding and backpropagation.")
    p.add_argument("--data", type=Path, metavar="DIR", help="MNIST's IDX files (else scikit-learn's digits)")
    p.add_argument("--network", choices=[*NETWORKS], nargs="+", default=[*NETWORKS], help="which (vgg resnet)")
    p.add_argument("--epochs", type=int, default=6, help="passes over the training images (6)")
    p.add_argument("--batch-size", type=int, default=64, help="images per batch (64)")
    p.add_argument("--steps", type=int, default=2, metavar="T", help="sweeps of inference per batch (2)")
    p.add_argument("--variance", type=float, default=100.0, help="what the output's energy is divided by (100)")
    p.add_argument("--m-lr", type=float, default=3e-3, help="highest rate of the M-steps, Adam's (0.003)")
    p.add_argument("--seed", type=int, default=0, help="of the weights and the order of the images (0)")
    p.add_argument("--plot", type=Path, default=Path("images.png"), metavar="FILE", help="picture (images.png)")
    args = p.parse_args(argv)
    data = load_or_stop(args.data, p)
    print(f"{data.name}: {len(data.train_x):,} images to learn from, {len(data.test_x):,} to test on")
    accuracies, energies = dict[str, list[float]](), dict[str, Tensor]()
    for name in args.network:
        found, energies[name] = learn_both(name, data, args)
        accuracies |= found
    plot(accuracies, energies, args.plot)
    print(f"drawn: {args.plot}")
    return accuracies


if __name__ == "__main__":
    main()
