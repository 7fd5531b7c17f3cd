"""Train a predictive coding network to read digits, by inference learning.

    python examples/train_digits.py                      # the 8 x 8 digits that come with scikit-learn, offline
    python examples/train_digits.py --data DIR           # MNIST, from its IDX files in DIR, gzipped or not
    python examples/train_digits.py --help

For every batch the image and its label are clamped, the hidden states start from a forward sweep, T E-steps move them
down the energy summed over the batch, and one M-step moves the weights down its mean: that is `Trainer`, by
`pyromancy.EM` or written out. The network is one of `pyromancy.networks`; a prediction is a forward sweep with no label
in sight. The rest shows energies live in a terminal, draws a picture and reads the command line. The same seed gives
the same result on the same machine with the same number of threads.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.bar import Bar
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

import pyromancy as pyro
from digits import Data, load_or_stop
from pyromancy.networks import ACTIVATIONS, PCN, mlp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MEASURED = 1000  # training images whose energies are shown after every epoch, and test images that are classified live


class Trainer:
    """Inference learning, by `pyromancy.EM` or by the plain autograd loop that it stands for.

    Args:
        pcn: the network.
        steps: E-steps per batch, T.
        e_lr: rate of the E-steps, gradient descent on the states.
        m_lr: rate of the M-steps, Adam on the weights.
        incremental: an M-step after every E-step, and not only after the last.
        plain: the plain loop.
    """

    def __init__(
        self, pcn: PCN, steps: int, e_lr: float, m_lr: float, incremental: bool = False, plain: bool = False
    ) -> None:
        self.pcn, self.steps, self.incremental, self.plain = pcn, steps, incremental, plain
        self.e_params, self.m_params = pcn.e_params(), pcn.m_params()
        self.e_opt = torch.optim.SGD(self.e_params, lr=e_lr)
        self.m_opt = torch.optim.Adam(self.m_params, lr=m_lr)
        self.em = pyro.EM(
            pcn.energy, self.e_params, self.m_opt, start=pcn.start, steps=steps, lr=e_lr, incremental=incremental
        )
        self.loop = pyro.InferenceLoop(pcn.energy, self.e_params, lr=e_lr)  # its E-steps alone, to look at energies

    def epoch(self, x: Tensor, y: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[int]:
        """Learn from all samples once, in random order; gives how many batches are done since it last gave."""
        if not self.plain:
            for part in self.em.epoch(x, y, batch_size=batch_size, generator=generator):
                yield part.batches
            return
        done, last = 0, time.perf_counter()
        for rows in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            self.batch(x[rows], y[rows])
            done += 1
            if time.perf_counter() - last > 0.1:
                yield done
                done, last = 0, time.perf_counter()
        yield done

    def batch(self, x: Tensor, y: Tensor) -> None:
        """Learn from one batch."""
        if not self.plain:
            self.em.step(x, y)
            return
        self.pcn.start(x, y)
        for step in range(1, self.steps + 1):
            self.infer(1)
            if self.incremental or step == self.steps:
                self.m_opt.zero_grad()
                self.pcn.energy().mean().backward(inputs=self.m_params)
                self.m_opt.step()

    def infer(self, steps: int) -> None:
        """E-steps. On the sum over the batch: each sample is its own problem, whatever the batch size."""
        if not self.plain:
            self.loop.run(steps)
            return
        for _ in range(steps):
            self.e_opt.zero_grad()
            self.pcn.energy().sum().backward(inputs=self.e_params)
            self.e_opt.step()

    def energies(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Energy of every predicted node before and after inference, means over samples, ``[nodes]`` each."""
        self.pcn.start(x, y)
        before = self.pcn.node_energies().detach()
        self.infer(self.steps)
        return before.mean(1), self.pcn.node_energies().detach().mean(1)


@torch.no_grad()
def accuracy(pcn: PCN, x: Tensor, labels: Tensor) -> float:
    """Fraction of images whose largest predicted output is at their label."""
    return (pcn.predict(x).argmax(1) == labels).double().mean().item()


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave, measured at its end: energies as `Trainer.energies` has them, in nats, and test accuracy.

    The seconds are those of learning.
    """

    before: list[float]
    after: list[float]
    accuracy: float
    seconds: float


class View:
    """What a terminal shows while a network learns: the energy of every node in the last batch, accuracy and progress.

    Elsewhere it shows nothing.

    Args:
        pcn: the network.
        data: of which the first test images are classified.
        batches: in all epochs.
        out: where to show it.
    """

    def __init__(self, pcn: PCN, data: Data, batches: int, out: Console) -> None:
        self.pcn, self.x, self.labels = pcn, data.test_x[:MEASURED], data.test_labels[:MEASURED]
        self.shown = out.is_terminal
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"),
            TimeRemainingColumn(),
        )  # fmt: skip
        self.progress = Progress(*columns, console=out)
        self.task = self.progress.add_task("", total=batches)
        self.live = Live(console=out, auto_refresh=False, transient=True)

    def __enter__(self) -> View:
        if self.shown:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def update(self, epoch: str, batches: int) -> None:
        """Show how things stand, so many batches later."""
        self.progress.update(self.task, description=epoch, advance=batches)
        if self.shown:
            self.live.update(Group(self.table(), self.progress), refresh=True)

    @torch.no_grad()
    def table(self) -> Table:
        """Energies per sample with their share of the sum, and accuracy."""
        energies = self.pcn.node_energies().mean(1).tolist()
        total = sum(energies)
        table = Table("node", "energy", "share of the sum", box=None, pad_edge=False)
        for name, energy in zip(names(len(energies)), energies, strict=True):
            table.add_row(name, f"{energy:.5f}", Bar(total or 1.0, 0, energy, width=40, color="cyan"))
        correct = accuracy(self.pcn, self.x, self.labels)
        table.add_row("all", f"{total:.5f}", f"{correct:.1%} of {len(self.x):,} test images are recognized")
        return table


def names(nodes: int) -> list[str]:
    """What to call the nodes that have an energy."""
    return [*(f"hidden {i + 1}" for i in range(nodes - 1)), "output"]


def train(pcn: PCN, data: Data, trainer: Trainer, epochs: int, batch_size: int, seed: int, out: Console) -> list[Epoch]:
    """Train for some epochs, with a line per epoch, and a `View` below the lines.

    Args:
        pcn: the network.
        data: on the network's device.
        trainer: learns from a batch.
        epochs: passes over the training images.
        batch_size: images per batch; the last batch of an epoch holds what is left.
        seed: of the order of the images.
        out: where to print.

    Returns:
        What each epoch gave.
    """
    targets = F.one_hot(data.train_labels).float()
    generator = torch.Generator().manual_seed(seed)
    history = []
    out.print("epoch   energy before   after inference   test accuracy   seconds")
    with View(pcn, data, epochs * math.ceil(len(targets) / batch_size), out) as view:
        for number in range(1, epochs + 1):
            seconds, start = 0.0, time.perf_counter()
            for batches in trainer.epoch(data.train_x, targets, batch_size, generator):
                seconds += time.perf_counter() - start
                view.update(f"epoch {number}/{epochs}", batches)
                start = time.perf_counter()
            before, after = trainer.energies(data.train_x[:MEASURED], targets[:MEASURED])
            if not after.isfinite().all():
                raise FloatingPointError(f"energy {after.sum().item()} after epoch {number}; lower --e-lr or --m-lr")
            correct = accuracy(pcn, data.test_x, data.test_labels)
            history.append(Epoch(before.tolist(), after.tolist(), correct, seconds))
            out.print(
                f"{number:5}   {before.sum().item():13.5f}   {after.sum().item():15.5f}   {correct:13.2%}   "
                f"{seconds:7.2f}",
            )
    return history


def plot(history: list[Epoch], path: Path) -> None:
    """Draw the energies per epoch, of the network and of each node, and the test accuracy.

    Args:
        history: what `train` returned.
        path: where to; its ending is the format.
    """
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(10, 4), layout="constrained")
    energies, accuracies = figure.subplots(1, 2, width_ratios=(3, 2))
    energies.plot(epochs, [sum(e.before) for e in history], "o-", color="0.6", label="all nodes, before inference")
    energies.plot(epochs, [sum(e.after) for e in history], "o-", color="black", label="all nodes, after inference")
    for i, name in enumerate(names(len(history[0].after))):
        energies.plot(epochs, [e.after[i] for e in history], ".--", label=f"{name}, after inference")
    energies.set(xlabel="epoch", ylabel="energy per sample (nats)", yscale="log", title="Training energy")
    energies.legend(fontsize="small")
    accuracies.plot(epochs, [100 * e.accuracy for e in history], "o-", color="black")
    accuracies.set(xlabel="epoch", ylabel="%", title=f"Test accuracy: {history[-1].accuracy:.2%}")
    for axes in (energies, accuracies):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=150)


def positive_int(text: str) -> int:
    """An argument that must be 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def positive_float(text: str) -> float:
    """An argument that must be a positive number."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def seed(text: str) -> int:
    """An argument that PyTorch takes as a seed."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2**63 - 1, got {text}")
    return value


def device(text: str) -> torch.device:
    """An argument that names a device which works here."""
    try:
        return torch.empty(0, device=text).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"cannot be used here: {text}: {str(error).splitlines()[0]}") from error


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description="Train a predictive coding network to read digits, by inference learning.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=100),
    )
    p.add_argument(
        "--data", type=Path, metavar="DIR", help="MNIST's IDX files, gzipped or not (else scikit-learn's digits)"
    )
    p.add_argument("--epochs", type=positive_int, help="passes over the training images (10; 6 with --data)")
    p.add_argument("--batch-size", type=positive_int, help="images per batch (100; 500 with --data)")
    p.add_argument("--steps", type=positive_int, default=20, metavar="T", help="E-steps per batch (20)")
    p.add_argument("--e-lr", type=positive_float, default=0.1, help="rate of the E-steps (0.1)")
    p.add_argument("--m-lr", type=positive_float, default=1e-3, help="rate of the M-steps, Adam's (0.001)")
    p.add_argument(
        "--hidden", type=positive_int, nargs="+", default=[256, 256], metavar="N", help="hidden nodes' widths (256 256)"
    )
    p.add_argument("--activation", choices=ACTIVATIONS, default="relu", help="of the hidden states (relu)")
    p.add_argument("--incremental", action="store_true", help="an M-step after every E-step, not only after the last")
    p.add_argument("--plain", action="store_true", help="train by the plain autograd loop, not by EM")
    p.add_argument("--seed", type=seed, default=0, help="of the weights and the order of the images (0)")
    p.add_argument("--device", type=device, default="cpu", help="cpu, cuda, cuda:1, ... (cpu)")
    p.add_argument("--threads", type=positive_int, help="threads on the CPU (PyTorch's own choice)")
    p.add_argument("--plot", type=Path, default=Path("energies.png"), metavar="FILE", help="picture (energies.png)")
    p.add_argument("--no-plot", action="store_const", const=None, dest="plot", help="write no plot")
    return p


def main(argv: Sequence[str] | None = None) -> list[Epoch]:
    """Run the command line.

    Returns:
        What each epoch gave.
    """
    p = parser()
    args = p.parse_args(argv)
    if args.plot is not None:
        formats = Figure().canvas.get_supported_filetypes()
        if args.plot.suffix.lstrip(".") not in formats:
            p.error(f"argument --plot: {args.plot} must end in one of {', '.join('.' + f for f in sorted(formats))}")
        if not args.plot.parent.is_dir():
            p.error(f"argument --plot: {args.plot.parent} is not a folder")
    data = load_or_stop(args.data, p)
    if args.threads:
        torch.set_num_threads(args.threads)
    data = data.to(args.device)
    out = Console(highlight=False, soft_wrap=True)

    torch.manual_seed(args.seed)
    classes = int(data.train_labels.max()) + 1
    sizes = [data.train_x.shape[1], *args.hidden, classes]
    pcn = mlp(sizes, args.activation).to(args.device)
    trainer = Trainer(pcn, args.steps, args.e_lr, args.m_lr, args.incremental, args.plain)
    epochs = args.epochs or (10 if args.data is None else 6)
    batch_size = args.batch_size or (100 if args.data is None else 500)

    measured = min(MEASURED, len(data.train_x))
    served = {s.backend for s in pyro.backends.report() if s.device == args.device.type}
    out.print(
        f"{data.name}: {len(data.train_x):,} images to learn from, {len(data.test_x):,} to test on\n"
        f"network {'-'.join(map(str, sizes))} {args.activation}, batch {batch_size}, T {args.steps}, seed {args.seed}; "
        f"{args.device}, {torch.get_num_threads()} threads\n"
        f"training: {'plain autograd loop' if args.plain else 'EM'}, "
        f"{' and '.join(sorted(served))} operators; energies are those of the first {measured:,} images",
    )
    start = time.perf_counter()
    try:
        history = train(pcn, data, trainer, epochs, batch_size, args.seed, out)
    except FloatingPointError as error:
        raise SystemExit(f"training diverged: {error}") from error
    out.print(f"test accuracy {history[-1].accuracy:.2%} in {time.perf_counter() - start:.1f} s")
    if not args.plain:
        out.print(trainer.em.explain())
    if args.plot is not None:
        plot(history, args.plot)
        out.print(f"energies per epoch: {args.plot}")
    return history


if __name__ == "__main__":
    main()
