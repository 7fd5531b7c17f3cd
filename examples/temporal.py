"""Temporal prediction: a linear system whose states and laws are inferred from what is seen of it.

A hidden state turns and is pushed about, and some of it is seen, with noise:

    x_t = A x_{t-1} + w_t,  w ~ N(0, q I)        y_t = C x_t + v_t,  v ~ N(0, r I)

The network is that model unrolled in time (arXiv:2305.11982), a node for every x_t and y_t, with one A and one C.
Three things are done with it. The states at the energy's minimum are compared with those of the Kalman smoother (Rauch,
Tung and Striebel, 1965), which they equal: the mode of a Gaussian is its mean. A and C are learned from sequences by
EM, from nothing but what was seen. And what comes next is predicted with them, beside a copy of what was last seen and
beside the system itself.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyromancy as pyro
from pyromancy.nodes import FixedNode, IsotropicGaussianNode, PredictiveNode, StandardGaussianNode

HIDDEN, SEEN = 4, 6


class Unrolled(nn.Module):
    """The model over a sequence: nodes x_1 .. x_T, each predicted by the one before, and y_1 .. y_T, each by its x.

    Args:
        length: T.
        q: variance of w.
        r: variance of v.
    """

    def __init__(self, length: int, q: float, r: float) -> None:
        super().__init__()
        self.move, self.see = nn.Linear(HIDDEN, HIDDEN, bias=False), nn.Linear(HIDDEN, SEEN, bias=False)
        self.first = FixedNode(HIDDEN)  # what x_1 is around, with variance 1
        moved = [IsotropicGaussianNode(HIDDEN, variance=q) for _ in range(length - 1)]
        seen = [IsotropicGaussianNode(SEEN, variance=r) for _ in range(length)]
        for node in [*moved, *seen]:
            node.logvar.requires_grad_(False)
        self.hidden, self.seen = nn.ModuleList([StandardGaussianNode(HIDDEN), *moved]), nn.ModuleList(seen)

    def nodes(self) -> list[tuple[PredictiveNode, PredictiveNode]]:
        """Hidden and seen ones, by time."""
        return cast(list[tuple[PredictiveNode, PredictiveNode]], [*zip(self.hidden, self.seen, strict=True)])

    def start(self, y: Tensor) -> None:
        """Clamp what is seen, ``[B, T, SEEN]``, and let the hidden states follow the laws from zero on."""
        x = self.first.init(y.new_zeros(len(y), HIDDEN))
        for t, (hidden, seen) in enumerate(self.nodes()):
            x = hidden.init(self.move(x) if t else x)
            seen.init(y[:, t])

    def energy(self) -> Tensor:
        """Free energy per sequence, ``[B]``."""
        energies, prediction = [], self.first.value
        for hidden, seen in self.nodes():
            energies += [hidden.energy(prediction), seen.energy(self.see(hidden.value))]
            prediction = self.move(hidden.value)
        return torch.stack(energies).sum(0)

    def states(self) -> Tensor:
        """The hidden states as they are, ``[B, T, HIDDEN]``."""
        return torch.stack([state.detach() for state in self.e_params()], 1)

    def e_params(self) -> list[nn.Parameter]:
        """The hidden states."""
        return [hidden.value for hidden, _ in self.nodes()]


def system(q: float, r: float) -> tuple[Tensor, Tensor]:
    """A, two rotations of different speed that die away slowly, and C, in float64."""
    blocks = []
    for angle in (0.35, 0.9):
        c, s = 0.98 * math.cos(angle), 0.98 * math.sin(angle)
        blocks.append(torch.tensor([[c, -s], [s, c]], dtype=torch.float64))
    return torch.block_diag(*blocks), torch.randn(SEEN, HIDDEN, dtype=torch.float64)


def simulate(a: Tensor, c: Tensor, q: float, r: float, sequences: int, length: int) -> tuple[Tensor, Tensor]:
    """Hidden states ``[sequences, length, HIDDEN]`` and what is seen of them."""
    x = torch.randn(sequences, HIDDEN, dtype=torch.float64)
    states = []
    for _ in range(length):
        states.append(x)
        x = x @ a.T + q**0.5 * torch.randn_like(x)
    hidden = torch.stack(states, 1)
    seen = hidden @ c.T
    return hidden, seen + r**0.5 * torch.randn_like(seen)


def smoothed(a: Tensor, c: Tensor, q: float, r: float, y: Tensor) -> tuple[Tensor, Tensor]:
    """The Kalman filter's last means ``[B, HIDDEN]`` and the smoother's of all times ``[B, T, HIDDEN]``."""
    one = torch.eye(HIDDEN, dtype=y.dtype)
    mean, cov = y.new_zeros(len(y), HIDDEN), one
    means, covs, before = [], [], []
    for t in range(y.shape[1]):
        if t:
            mean, cov = mean @ a.T, a @ cov @ a.T + q * one
        before.append((mean, cov))
        gain = torch.linalg.solve(c @ cov @ c.T + r * torch.eye(SEEN, dtype=y.dtype), c @ cov).T
        mean, cov = mean + (y[:, t] - mean @ c.T) @ gain.T, (one - gain @ c) @ cov
        means.append(mean)
        covs.append(cov)
    smooth = [means[-1]]
    for t in range(y.shape[1] - 2, -1, -1):
        back = torch.linalg.solve(before[t + 1][1], a @ covs[t]).T
        smooth.insert(0, means[t] + (smooth[0] - before[t + 1][0]) @ back.T)
    return means[-1], torch.stack(smooth, 1)


def infer(net: Unrolled, y: Tensor, steps: int) -> int:
    """Take a network's states to the minimum of its energy and return how many steps that took."""
    net.start(y)
    loop = pyro.InferenceLoop(net.energy, net.e_params(), method=pyro.methods.Accelerated(coordinates="states"))
    return int(loop.run(steps, tol=1e-12).steps)


def learn(net: Unrolled, y: Tensor, args: argparse.Namespace) -> list[float]:
    """Learn A and C from sequences, and return the mean energy of every epoch."""
    em = pyro.EM(
        net.energy, net.e_params(), torch.optim.Adam([net.move.weight, net.see.weight], args.m_lr), start=net.start,
        steps=args.steps, method=pyro.methods.Accelerated(coordinates="states"),
    )  # fmt: skip
    energies = []
    for _ in range(args.epochs):
        total = 0.0
        for rows in torch.randperm(len(y)).split(args.batch_size):
            em.step(y[rows])
            total += net.energy().sum().item()
        energies.append(total / len(y))
    return energies


def next_seen(net: Unrolled, y: Tensor, steps: int) -> Tensor:
    """What a network predicts to come after sequences, ``[B, SEEN]``."""
    infer(net, y, steps)
    with torch.no_grad():
        predicted: Tensor = net.see(net.move(net.e_params()[-1]))
    return predicted


def plot(hidden: Tensor, inferred: Tensor, energies: list[float], errors: dict[str, float], path: Path) -> None:
    """Draw a sequence's states with those inferred, energies by epoch, and errors of predictions."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for i in range(HIDDEN):
        (line,) = left.plot(hidden[:, i].tolist(), ":")
        left.plot(inferred[:, i].tolist(), color=line.get_color())
    left.set(xlabel="time", title="Hidden states (dotted) and inferred ones")
    middle.plot(range(1, len(energies) + 1), energies)
    middle.set(xlabel="epoch", title="Free energy while A and C are learned")
    right.barh([*errors], [*errors.values()])
    right.set(xlabel="mean square", title="Error of what is seen next")
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the command line.

    Returns:
        Mean squares of errors: of inferred states for those of the Kalman smoother, and of what is seen next by name.
    """
    p = argparse.ArgumentParser(description="Infer and learn a linear system from noisy sequences.")
    p.add_argument("--sequences", type=int, default=512, help="to learn from (512)")
    p.add_argument("--length", type=int, default=20, metavar="T", help="of a sequence (20)")
    p.add_argument("--epochs", type=int, default=60, help="passes over the sequences (60)")
    p.add_argument("--batch-size", type=int, default=64, help="sequences per batch (64)")
    p.add_argument("--steps", type=int, default=30, help="E-steps per batch (30)")
    p.add_argument("--m-lr", type=float, default=0.01, help="rate of the M-steps, Adam's (0.01)")
    p.add_argument("--q", type=float, default=0.1, help="variance of what pushes the states (0.1)")
    p.add_argument("--r", type=float, default=0.3, help="variance of what is added to what is seen (0.3)")
    p.add_argument("--seed", type=int, default=0, help="of the system and the sequences (0)")
    p.add_argument("--plot", type=Path, default=Path("temporal.png"), metavar="FILE", help="picture (temporal.png)")
    args = p.parse_args(argv)
    torch.manual_seed(args.seed)
    q, r, t = args.q, args.r, args.length
    a, c = system(q, r)
    _, seen = simulate(a, c, q, r, args.sequences, t + 1)
    test_hidden, test_seen = simulate(a, c, q, r, 200, t + 1)
    known = Unrolled(t, q, r).double()
    with torch.no_grad():
        known.move.weight.copy_(a)
        known.see.weight.copy_(c)
    steps = infer(known, test_seen[:, :t], 5000)
    filtered, smooth = smoothed(a, c, q, r, test_seen[:, :t])
    inferred = known.states()
    found = {"from the smoother": (inferred - smooth).square().mean().item()}
    print(f"states after {steps} steps: mean square {found['from the smoother']:.1e} from the Kalman smoother's")
    print(f"from the true ones {(inferred - test_hidden[:, :t]).square().mean():.4f}")
    net = Unrolled(t, q, r)
    energies = learn(net, seen[:, :t].float(), args)
    print(f"free energy per sequence: {energies[0]:.1f} in the first epoch, {energies[-1]:.1f} in the last")
    target = test_seen[:, t]
    guesses = {
        "what was last seen": test_seen[:, t - 1],
        "learned": next_seen(net, test_seen[:, :t].float(), 5000).double(),
        "the system itself": filtered @ a.T @ c.T,
    }
    errors = {name: (guess - target).square().mean().item() for name, guess in guesses.items()}
    for name, value in errors.items():
        print(f"next, by {name:18}  mean square {value:.3f}")
    plot(test_hidden[0, :t], inferred[0], energies, errors, args.plot)
    print(f"drawn: {args.plot}")
    return found | errors


if __name__ == "__main__":
    main()
