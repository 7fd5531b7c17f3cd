"""A causal transformer that learns by predictive coding what character comes next, on this project's own documents.

Every state of `pyromancy.networks.transformer` is a node, along the residual stream, and the last is categorical: its
energy is the cross-entropy of all positions. The network is trained twice from the same weights on the same batches, by
`pyromancy.EM` and by backpropagation of that cross-entropy. The picture shows both losses on text that was kept back,
beside those of models that count: single characters, and characters by the one, two or three before.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import pyromancy as pyro

ROOT = Path(__file__).parents[1]


def load_text(paths: Sequence[Path]) -> str:
    """What Markdown files hold, one behind the other, without what is no ASCII.

    Raises:
        FileNotFoundError: there are none.
    """
    files = sorted(f for path in paths for f in ([path] if path.is_file() else path.glob("*.md")))
    if not files:
        raise FileNotFoundError(f"no Markdown files in {', '.join(map(str, paths))}")
    return "\n".join(f.read_text(encoding="utf-8") for f in files).encode("ascii", "ignore").decode()


def windows(symbols: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """All pieces of a text ``[N, length]``, half of one on from the last, and what comes after each character."""
    pieces = symbols.unfold(0, length + 1, length // 2)
    return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()


def counted(train: str, test: str, before: int) -> float:
    """Cross-entropy per character by counts of what follows so many, mixed with those of what follows one fewer.

    The mixture is Witten and Bell's (1991): the longer context counts by how often it was seen, against how many
    different characters followed it.
    """
    vocabulary = len({*train, *test})
    counts = [dict[str, Counter[str]]() for _ in range(before + 1)]
    for order, of in enumerate(counts):
        for i in range(order, len(train)):
            of.setdefault(train[i - order : i], Counter())[train[i]] += 1

    def probability(context: str, character: str, order: int) -> float:
        if order < 0:
            return 1 / vocabulary
        shorter = probability(context[1:], character, order - 1)
        seen = counts[order].get(context)
        if not seen:
            return shorter
        return (seen[character] + len(seen) * shorter) / (seen.total() + len(seen))

    total = sum(math.log(probability(test[i - before : i], test[i], before)) for i in range(before, len(test)))
    return -total / (len(test) - before)


def loss_of(net: pyro.networks.PCN, x: Tensor, y: Tensor) -> float:
    """Cross-entropy per character of a network's predictions."""
    with torch.no_grad():
        parts = zip(x.split(128), y.split(128), strict=True)
        return sum(F.cross_entropy(net.predict(a), b, reduction="sum").item() for a, b in parts) / y.numel()


def learn(
    name: str, net: pyro.networks.PCN, step: Callable[[Tensor, Tensor], object], train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor], args: argparse.Namespace,
) -> list[float]:  # fmt: skip
    """Run epochs of steps, and return the loss on the test pieces after each."""
    generator = torch.Generator().manual_seed(args.seed)
    losses = []
    for epoch in range(1, args.epochs + 1):
        for rows in torch.randperm(len(train[0]), generator=generator).split(args.batch_size):
            step(train[0][rows], train[1][rows])
        losses.append(loss_of(net, *test))
        print(f"{name:18}  epoch {epoch:2}  {losses[-1]:.3f} nats a character", flush=True)
    return losses


def continued(net: pyro.networks.PCN, text: str, alphabet: str, length: int, count: int) -> str:
    """A text and what a network draws to come next, character by character."""
    places = {c: i for i, c in enumerate(alphabet)}
    symbols = [places[c] for c in text]
    with torch.no_grad():
        for _ in range(count):
            logits = net.predict(torch.tensor([symbols[-length:]]))[0, :, -1]
            symbols.append(int(torch.multinomial(F.softmax(logits / 0.7, 0), 1)))
    return "".join(alphabet[i] for i in symbols)


def plot(losses: dict[str, list[float]], baselines: dict[str, float], path: Path) -> None:
    """Draw losses by epoch, and those of what counts."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in losses.items():
        axes.plot(range(1, len(values) + 1), values, "o-", label=name)
    for name, value in baselines.items():
        axes.axhline(value, color="0.6", linestyle=":")
        axes.annotate(name, (1, value), fontsize=8, color="0.4", va="bottom")
    axes.set(xlabel="epoch", ylabel="nats a character", title="Text that was kept back")
    axes.legend()
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the command line.

    Returns:
        Losses on the text that was kept back, of both ways to learn and of what counts, by name.
    """
    p = argparse.ArgumentParser(
        description="A causal transformer on characters: predictive coding and backpropagation."
    )
    p.add_argument("--text", type=Path, nargs="+", default=[ROOT / "docs", ROOT / "CHANGELOG.md"], metavar="PATH",
                   help="Markdown files, or folders of them (this project's)")  # fmt: skip
    p.add_argument("--length", type=int, default=32, metavar="T", help="characters of a piece (32)")
    p.add_argument("--width", type=int, default=64, help="of the states (64)")
    p.add_argument("--depth", type=int, default=2, help="layers (2)")
    p.add_argument("--epochs", type=int, default=5, help="passes over the text (5)")
    p.add_argument("--batch-size", type=int, default=64, help="pieces per batch (64)")
    p.add_argument("--steps", type=int, default=2, metavar="E", help="sweeps of inference per batch (2)")
    p.add_argument("--variance", type=float, default=1e3, help="of the output (1000); at 1 little is learned")
    p.add_argument("--m-lr", type=float, default=3e-3, help="rate of the M-steps, Adam's (0.003)")
    p.add_argument("--seed", type=int, default=0, help="of the weights and the order of the pieces (0)")
    p.add_argument("--plot", type=Path, default=Path("characters.png"), metavar="FILE", help="picture (characters.png)")
    args = p.parse_args(argv)
    try:
        text = load_text(args.text)
    except OSError as error:
        p.error(f"argument --text: {error}")
    kept = len(text) // 10
    train_text, test_text = text[:-kept], text[-kept:]
    alphabet = "".join(sorted({*text}))
    places = {c: i for i, c in enumerate(alphabet)}
    train, test = (windows(torch.tensor([places[c] for c in t]), args.length) for t in (train_text, test_text))
    print(f"{len(text):,} characters, {len(alphabet)} of them different; {len(train[0]):,} pieces to learn from")
    baselines = {f"by the {n} before": counted(train_text, test_text, n) for n in range(4)}
    for name, value in baselines.items():
        print(f"counts, {name:17}  {value:.3f} nats a character")

    torch.manual_seed(args.seed)
    net = pyro.networks.transformer(len(alphabet), args.length, args.width, 4, args.depth, variance=args.variance)
    twin = copy.deepcopy(net)
    em = pyro.EM(
        net.energy, net.e_params(), torch.optim.Adam(net.m_params(), args.m_lr), start=net.start,
        steps=args.steps, method=pyro.methods.Accelerated(),
    )  # fmt: skip
    optimizer = torch.optim.Adam(twin.m_params(), args.m_lr)

    def backpropagate(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        (F.cross_entropy(twin.predict(x), y) * args.length).backward()
        optimizer.step()

    losses = {
        "predictive coding": learn("predictive coding", net, em.step, train, test, args),
        "backpropagation": learn("backpropagation", twin, backpropagate, train, test, args),
    }
    print(continued(net, test_text[: args.length], alphabet, args.length, 200))
    plot(losses, baselines, args.plot)
    print(f"drawn: {args.plot}")
    return {name: values[-1] for name, values in losses.items()} | baselines


if __name__ == "__main__":
    main()
