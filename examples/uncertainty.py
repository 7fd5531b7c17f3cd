"""Learn how uncertain each output is: the lower half of digits from the upper, with a variance for every pixel.

    python examples/uncertainty.py            # scikit-learn's digits, offline; draws uncertainty.png

A `FactorizedGaussianNode` at the end of a network learns a variance per pixel by the same M-step as the weights; an
`IsotropicGaussianNode` learns one for all. The variances are tried on test images: of a Gaussian error 68.3% are within
one standard deviation and 95.4% within two, of every pixel alone as of all together. The hidden units have a small
constant variance. One near the outputs' would let hidden states explain errors away at no cost, and the outputs'
variances fall without end: a variance at the likeliest states is too small by what the hidden states give way.

Pixels that hardly change, as at the edge, are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyromancy as pyro
from digits import load_digits
from pyromancy.nodes import FactorizedGaussianNode, FixedNode, IsotropicGaussianNode

if TYPE_CHECKING:
    from collections.abc import Sequence

HIDDEN, HIDDEN_VARIANCE, LEAST = 64, 1e-4, 0.1  # the last: of the standard deviation of a pixel
WEIGHT_RATE, VARIANCE_RATE = 3e-3, 3e-2  # of Adam


def learn(
    x: Tensor, y: Tensor, output: FactorizedGaussianNode | IsotropicGaussianNode, epochs: int, seed: int
) -> pyro.networks.PCN:
    """A network that predicts rows of y from rows of x, and the variance that is left."""
    torch.manual_seed(seed)
    hidden = IsotropicGaussianNode(HIDDEN, variance=HIDDEN_VARIANCE)
    hidden.logvar.requires_grad_(False)
    edges = [nn.Linear(x.shape[1], HIDDEN), nn.Sequential(nn.Tanh(), nn.Linear(HIDDEN, y.shape[1]))]
    net = pyro.networks.PCN([FixedNode(x.shape[1]), hidden, output], edges)
    optimizer = torch.optim.Adam(net.edges.parameters(), WEIGHT_RATE)
    optimizer.add_param_group({"params": [output.logvar], "lr": VARIANCE_RATE})
    em = pyro.EM(
        net.energy, net.e_params(), optimizer, start=net.start, steps=20, method=pyro.methods.Accelerated(), tol=0.1
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for _ in em.epoch(x, y, batch_size=64, generator=generator):
            pass
    return net


def likelihood(errors: Tensor, deviation: Tensor) -> float:
    """Minus the logarithm of the density of errors ``[N, pixels]``, per pixel, in nats, without its constant."""
    return (0.5 * (errors / deviation).square() + deviation.log()).mean().item()


def within(errors: Tensor, deviation: Tensor, factor: float) -> Tensor:
    """Share of errors ``[N, pixels]`` that are less than so many standard deviations, by pixel."""
    return ((errors / deviation).abs() < factor).double().mean(0)


def plot(of_pixels: Tensor, rmse: Tensor, used: Tensor, shares: dict[str, Tensor], path: Path) -> None:
    """Draw learned deviations as an image and beside the errors of test images, and the shares within two of them."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    image, scatter, bars = figure.subplots(1, 3)
    half = torch.full((len(used),), torch.nan)
    half[used] = of_pixels
    shown = image.imshow(half.view(-1, 8).tolist())
    figure.colorbar(shown, ax=image, shrink=0.6)
    image.set(title="Learned standard deviation, lower half", xticks=[], yticks=[])
    scatter.plot([0, 0.45], [0, 0.45], color="0.7")
    scatter.plot(of_pixels.tolist(), rmse.tolist(), "ok")
    scatter.set(xlabel="learned standard deviation", ylabel="error of test images (root mean square)", title="By pixel")
    for name, share in shares.items():
        bars.plot(range(len(share)), (100 * share.sort().values).tolist(), "o-", label=name)
    bars.axhline(95.4, color="0.7")
    bars.set(xlabel="pixel, in order", ylabel="%", title="Errors within two standard deviations")
    bars.legend()
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the command line.

    Returns:
        By output: shares within one and two standard deviations, the least and the greatest of a pixel within two, and
        the negative log-likelihood.
    """
    p = argparse.ArgumentParser(description="Learn how uncertain each output is.")
    p.add_argument("--epochs", type=int, default=40, help="passes over the training images (40)")
    p.add_argument("--seed", type=int, default=0, help="of the weights and the order of images (0)")
    p.add_argument(
        "--plot", type=Path, default=Path("uncertainty.png"), metavar="FILE", help="picture (uncertainty.png)"
    )
    args = p.parse_args(argv)
    data = load_digits()
    half = data.train_x.shape[1] // 2
    used = data.train_x[:, half:].std(0) > LEAST
    train, y = data.train_x[:, half:][:, used], data.test_x[:, half:][:, used]
    results, shares = {}, {}
    outputs: dict[str, FactorizedGaussianNode | IsotropicGaussianNode]
    outputs = {"one variance": IsotropicGaussianNode(len(y.T)), "one per pixel": FactorizedGaussianNode(len(y.T))}
    for name, output in outputs.items():
        net = learn(data.train_x[:, :half], train, output, args.epochs, args.seed)
        with torch.no_grad():
            errors, deviation = y - net.predict(data.test_x[:, :half]), (0.5 * output.logvar).exp().expand(len(y.T))
        one, two = within(errors, deviation, 1), within(errors, deviation, 2)
        shares[name] = two
        results[name] = {
            "one": one.mean().item(), "two": two.mean().item(), "least": two.min().item(), "most": two.max().item(),
            "nats": likelihood(errors, deviation),
        }  # fmt: skip
        r = results[name]
        print(
            f"{name:13}  within 1: {r['one']:.1%}, within 2: {r['two']:.1%}, of single pixels {r['least']:.1%} to "
            f"{r['most']:.1%}; {r['nats']:.3f} nats"
        )
    plot(deviation, errors.square().mean(0).sqrt(), used, shares, args.plot)
    print(f"drawn: {args.plot}")
    return results


if __name__ == "__main__":
    main()
