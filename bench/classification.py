"""Networks that end in a cross-entropy: what a batch costs, and what they learn of MNIST.

    python -m bench.classification time                 # EM beside the same network with a Gaussian output, and JAX
    python -m bench.classification accuracy DIR         # MNIST's IDX files in DIR; --seeds 0 1 2

Times are processor time, so that what else runs on a machine counts little; contenders take turns in random order.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro

from . import rivals
from .exact import relative
from .network import make_data, make_edges
from .settings import ADAM_RATE, SETTINGS, Setting

TIMED = ("pyromancy-tutorial", "pcx", "small")
SIZES, BATCH, EPOCHS, STEPS, RATE = (784, 256, 256, 10), 64, 6, 20, 0.1


def em_of(setting: Setting, output: str) -> tuple[pyro.networks.PCN, Callable[[], object]]:
    """A network with an output, and a function that does a batch of it."""
    *hidden, last = setting.sizes
    nodes = [pyro.nodes.FixedNode(hidden[0]), *map(pyro.nodes.StandardGaussianNode, hidden[1:])]
    net = pyro.networks.PCN([*nodes, pyro.networks.OUTPUTS[output](last)], list(make_edges(setting)))
    optimizer = torch.optim.Adam(net.m_params(), ADAM_RATE)
    em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=setting.steps, lr=setting.rate)
    x, y = make_data(setting)
    return net, lambda: em.step(x, y)


def timed(setting: Setting, rounds: int) -> dict[str, float]:
    """Median milliseconds of a batch, by contender."""
    net, categorical = em_of(setting, "categorical")
    contenders = {"categorical": categorical, "Gaussian": em_of(setting, "gaussian")[1]}
    try:
        jax = rivals.jax_scan(setting, "cpu", categorical=True)
    except rivals.NotHereError as reason:
        print(reason, file=sys.stderr)
    else:
        jax.batch(), categorical()
        states = jax.left()[0].states
        off = max(relative(z.detach(), other) for z, other in zip(net.e_params(), states, strict=True))
        if off > 1e-3:
            raise SystemExit(f"{setting}: the states of JAX are others, by {off:.1e}")

        def batch() -> None:
            jax.batch()
            assert jax.finish is not None
            jax.finish()

        contenders["JAX"] = batch
    for contender in contenders.values():
        for _ in range(5):
            contender()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in random.sample([*contenders], len(contenders)):
            began = time.process_time()
            contenders[name]()
            times[name].append(1e3 * (time.process_time() - began))
    return {name: statistics.median(of) for name, of in times.items()}


def learned(folder: Path, seed: int, output: str) -> tuple[float, float]:
    """Test accuracy, and the test labels' negative log-likelihood where there is one, after all epochs.

    Args:
        folder: of MNIST's files.
        seed: of weights and order.
        output: of the network, or "backpropagation" of the cross-entropy.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from digits import load_idx

    data = load_idx(folder)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = pyro.networks.mlp(SIZES, output="gaussian" if output == "gaussian" else "categorical")
    optimizer = torch.optim.Adam(net.m_params(), ADAM_RATE)
    em = pyro.EM(net.energy, net.e_params(), optimizer, start=net.start, steps=STEPS, lr=RATE)
    plain: nn.Module = net.sequential()
    targets = F.one_hot(data.train_labels).float() if output == "gaussian" else data.train_labels
    for _ in range(EPOCHS):
        if output != "backpropagation":
            for _ in em.epoch(data.train_x, targets, batch_size=BATCH, generator=generator):
                pass
            continue
        for rows in torch.randperm(len(targets), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(plain(data.train_x[rows]), targets[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        predictions = net.predict(data.test_x)
    right = (predictions.argmax(1) == data.test_labels).double().mean().item()
    likely = float("nan") if output == "gaussian" else F.cross_entropy(predictions, data.test_labels).item()
    return right, likely


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Networks that end in a cross-entropy.")
    commands = parser.add_subparsers(dest="command", required=True)
    of_time = commands.add_parser("time")
    of_time.add_argument("--rounds", type=int, default=100)
    of_accuracy = commands.add_parser("accuracy")
    of_accuracy.add_argument("data", type=Path)
    of_accuracy.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of_accuracy.add_argument("--outputs", nargs="+", default=["categorical", "gaussian", "backpropagation"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "time":
        for name in TIMED:
            found = timed(SETTINGS[name], args.rounds)
            ratios = {k: v / found["categorical"] for k, v in found.items()}
            print(name, *(f"{k} {v:.3f} ms ({ratios[k]:.2f})" for k, v in found.items()), sep="; ", flush=True)
        return
    for seed in args.seeds:
        for output in args.outputs:
            right, likely = learned(args.data, seed, output)
            print(f"seed {seed}; {output}: {right:.2%}, {likely:.4f} nats", flush=True)


if __name__ == "__main__":
    main()
