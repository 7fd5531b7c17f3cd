"""What networks that end in a cross-entropy learn of MNIST, beside squares and backpropagation.

python -m bench.classification DIR         # MNIST's IDX files in DIR; --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro

from .settings import ADAM_RATE

SIZES, BATCH, EPOCHS, STEPS, RATE = (784, 256, 256, 10), 64, 6, 20, 0.1


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="MNIST's IDX files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--outputs", nargs="+", default=["categorical", "gaussian", "backpropagation"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        for output in args.outputs:
            right, likely = learned(args.data, seed, output)
            print(f"seed {seed}; {output}: {right:.2%}, {likely:.4f} nats", flush=True)


if __name__ == "__main__":
    main()
