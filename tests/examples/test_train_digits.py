"""The example as a person runs it, and its reader of IDX files on files made here."""

import gzip
import importlib
import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyromancy as pyro

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def digits(example):
    return importlib.import_module("digits")


@pytest.fixture(scope="module")
def mnist():
    folder = os.environ.get("PYROMANCY_MNIST")
    if not folder:
        pytest.skip("PYROMANCY_MNIST does not name a folder with MNIST's IDX files")
    return Path(folder)


def idx(content, *shape):
    """An IDX file of unsigned bytes, by the format's description."""
    assert len(content) == math.prod(shape)
    header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    return header + bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Two images a class of 4 x 3 pixels to learn from and one to test on; an image of class k is lit in row k."""
    for part, copies in (("train", 2), ("t10k", 1)):
        labels = [0, 1, 2, 3] * copies
        pixels = [255 if row == label else 0 for label in labels for row in range(4) for _ in range(3)]
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels, len(labels), 4, 3))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels, len(labels))))
    return tmp_path


def refused(example, capsys, *argv):
    """The message with which the command line refuses its arguments."""
    with pytest.raises(SystemExit) as stop:
        example.main([*map(str, argv)])
    assert stop.value.code == 2
    return capsys.readouterr().err


class TestReadIdx:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
    def test_values(self, digits, tmp_path, pack):
        path = tmp_path / "file"
        path.write_bytes(pack(idx(range(24), 2, 3, 4)))
        read = digits.read_idx(path)
        assert read.dtype == torch.uint8
        assert read.tolist() == torch.arange(24).reshape(2, 3, 4).tolist()

    def test_no_items(self, digits, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(idx([], 0, 28, 28))
        assert digits.read_idx(path).shape == (0, 28, 28)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not an IDX file.*an empty file"),
            (b"\x89PNG", "not an IDX file of unsigned bytes.*got 89 50 4e"),
            (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "unsigned bytes.*got 00 00 0d"),
            (b"\0\0\x08\x03\0\0", "header of 16 bytes.*got 6"),
            (b"\0\0\x08\x00", "header of 8 bytes.*got 4"),
            (idx(range(6), 2, 3)[:-1], r"18 bytes for its shape \(2, 3\), got 17"),
            (idx(range(6), 2, 3) + b"x", r"18 bytes for its shape \(2, 3\), got 19"),
            (gzip.compress(idx(range(6), 2, 3))[:-5], "gzipped, but damaged"),
            (b"\x1f\x8b\x08 and no more", "gzipped, but damaged"),
        ],
        ids=["empty", "png", "floats", "short header", "no dimensions", "short", "long", "cut gzip", "bad gzip"],
    )
    def test_refuses(self, digits, tmp_path, content, message):
        path = tmp_path / "the-file"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"the-file.*{message}"):
            digits.read_idx(path)


class TestLoadIdx:
    def test_values(self, digits, folder):
        data = digits.load_idx(folder)
        assert data.train_x.shape == (8, 12)
        assert data.train_x[1].tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6
        assert data.train_labels.tolist() == [0, 1, 2, 3] * 2
        assert data.test_labels.tolist() == [0, 1, 2, 3]

    def test_missing_file_lists_the_names_looked_for(self, example, folder, capsys):
        (folder / "t10k-labels-idx1-ubyte.gz").unlink()
        message = refused(example, capsys, "--data", folder)
        assert "no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz in" in message

    def test_missing_folder(self, example, tmp_path, capsys):
        message = refused(example, capsys, "--data", tmp_path / "nowhere")
        assert "nowhere is not a folder" in message
        assert "train-images-idx3-ubyte" in message

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("train-images-idx3-ubyte", idx(range(8), 8), r"training images must have 3 dimensions, got \(8,\)"),
            ("t10k-images-idx3-ubyte", idx(range(8), 4, 2, 1), r"of \(4, 3\) and test images of \(2, 1\)"),
            ("t10k-images-idx3-ubyte", idx(range(36), 3, 4, 3), "3 test images, but 4 test labels"),
            ("t10k-images-idx3-ubyte", idx([], 0, 4, 3), "there are no test images"),
            ("t10k-labels-idx1-ubyte", idx([0, 1, 2, 4], 4), "test label 4, which no training image has"),
        ],
        ids=["dimensions", "sizes", "counts", "nothing", "label"],
    )  # fmt: skip
    def test_refuses(self, digits, folder, name, content, message):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            digits.load_idx(folder)


def test_states_of_the_sweep_and_energies(example):
    """Before inference every hidden energy is zero, and the output's is that of the prediction from states."""
    pcn = example.mlp([3, 5, 4, 2], "tanh").double()
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    pcn.start(x, y)
    (W1, b1), (W2, b2), (W3, b3) = ((m.weight, m.bias) for m in pcn.modules() if isinstance(m, torch.nn.Linear))
    out = torch.tanh(torch.tanh(x @ W1.T + b1) @ W2.T + b2) @ W3.T + b3
    assert pcn.node_energies()[:2].abs().max() < 1e-28
    torch.testing.assert_close(pcn.energy(), 0.5 * (y - out).square().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(pcn(x), out, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        pcn.nodes[1].value.add_(1)  # an edge predicts from the state of its node, not from that node's prediction
    moved = torch.tanh(x @ W1.T + b1 + 1) @ W2.T + b2
    expected = 0.5 * (torch.tanh(x @ W1.T + b1) @ W2.T + b2 - moved).square().sum(1)
    first, second, _ = pcn.node_energies()
    torch.testing.assert_close(first, torch.full_like(first, 2.5), rtol=1e-12, atol=0)
    torch.testing.assert_close(second, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("plain", [False, True], ids=["em", "plain"])
@pytest.mark.parametrize("incremental", [False, True], ids=["inference learning", "incremental"])
def test_batch_is_descent_on_sums_and_adam_on_means(example, incremental, plain):
    """A batch does to a copy what the steps written out with autograd on plain tensors do."""
    sizes, steps, e_lr, m_lr = [3, 5, 2], 4, 0.05, 1e-2
    pcn = example.mlp(sizes, "tanh").double()
    edges = [m for m in pcn.modules() if isinstance(m, torch.nn.Linear)]
    theta = [p.detach().clone().requires_grad_() for m in edges for p in (m.weight, m.bias)]
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    example.Trainer(pcn, steps, e_lr, m_lr, incremental, plain).batch(x, y)

    def energy(z):
        W1, b1, W2, b2 = theta
        return 0.5 * ((z - x @ W1.T - b1).square().sum() + (y - torch.tanh(z) @ W2.T - b2).square().sum())

    adam = torch.optim.Adam(theta, lr=m_lr)
    z = (x @ theta[0].T + theta[1]).detach().requires_grad_()
    for step in range(steps):
        (grad,) = torch.autograd.grad(energy(z), z)
        z = (z - e_lr * grad).detach().requires_grad_()
        if incremental or step == steps - 1:
            adam.zero_grad()
            (energy(z) / len(x)).backward()
            adam.step()
    torch.testing.assert_close(pcn.nodes[1].value, z, rtol=1e-11, atol=1e-13)
    for ours, expected in zip((p for m in edges for p in (m.weight, m.bias)), theta, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("incremental", [False, True], ids=["inference learning", "incremental"])
def test_an_epoch_is_its_batches_in_random_order(example, incremental):
    """By EM, and by the plain loop: 11 samples in batches of 4, the last of which has 3."""
    torch.manual_seed(0)
    x, y = torch.randn(11, 3).double(), torch.randn(11, 2).double()
    weights = []
    for plain in (False, True):
        torch.manual_seed(1)
        pcn = example.mlp([3, 5, 2], "tanh").double()
        trainer = example.Trainer(pcn, steps=4, e_lr=0.05, m_lr=1e-2, incremental=incremental, plain=plain)
        assert sum(trainer.epoch(x, y, 4, torch.Generator().manual_seed(2))) == 3
        weights.append(trainer.m_params)
    torch.manual_seed(1)
    pcn = example.mlp([3, 5, 2], "tanh").double()
    trainer = example.Trainer(pcn, steps=4, e_lr=0.05, m_lr=1e-2, incremental=incremental, plain=True)
    for rows in torch.randperm(11, generator=torch.Generator().manual_seed(2)).split(4):
        trainer.batch(x[rows], y[rows])
    for found in weights:
        for ours, expected in zip(found, trainer.m_params, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("plain", [False, True], ids=["em", "plain"])
def test_energies_are_those_before_and_after_inference(example, plain):
    """Of a linear network with one hidden neuron, x = 1, W = (2, 3), y = 1: inference ends at z = 0.5."""
    pcn = example.mlp([1, 1, 1], "identity").double()
    for edge, weight in zip((m for m in pcn.modules() if isinstance(m, torch.nn.Linear)), (2.0, 3.0), strict=True):
        torch.nn.init.constant_(edge.weight, weight)
        torch.nn.init.zeros_(edge.bias)
    trainer = example.Trainer(pcn, steps=200, e_lr=0.1, m_lr=0.1, plain=plain)
    one = torch.ones(3, 1).double()
    before, after = trainer.energies(one, one)
    torch.testing.assert_close(before, torch.tensor([0.0, 12.5]).double())
    torch.testing.assert_close(after, torch.tensor([1.125, 0.125]).double())


def test_only_hidden_states_are_free(example):
    pcn = example.mlp([3, 5, 4, 2], "relu")
    trainer = example.Trainer(pcn, steps=1, e_lr=0.1, m_lr=0.1)
    assert {id(p) for p in trainer.e_params} == {id(pcn.nodes[1].value), id(pcn.nodes[2].value)}
    assert len(trainer.m_params) == 6
    assert not {id(p) for p in pyro.get_mstep_params(pcn)} & {id(p) for p in trainer.e_params}


def test_learns_digits_and_draws(example, tmp_path, capsys):
    picture = tmp_path / "energies.png"
    argv = ["--epochs", "3", "--steps", "8", "--batch-size", "20", "--m-lr", "0.002", "--hidden", "64", "64"]
    history = example.main([*argv, "--plot", str(picture)])
    assert history[-1].accuracy > 0.9
    for epoch in history:
        assert sum(epoch.after) < sum(epoch.before)
    assert sum(history[-1].after) < 0.5 * sum(history[0].after)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    out = capsys.readouterr().out
    assert "1,437 images to learn from, 360 to test on" in out
    assert f"test accuracy {history[-1].accuracy:.2%}" in out


def test_the_table_has_energies_their_shares_and_accuracy(example, digits):
    """Energies of one hidden neuron at z = 2.5, x = 1, W = (2, 3), y = 8: 0.125 each, half a bar."""
    pcn = example.mlp([1, 1, 1], "identity").double()
    for edge, weight in zip((m for m in pcn.modules() if isinstance(m, torch.nn.Linear)), (2.0, 3.0), strict=True):
        torch.nn.init.constant_(edge.weight, weight)
        torch.nn.init.zeros_(edge.bias)
    one = torch.ones(4, 1).double()
    pcn.start(one, 8 * one)
    pcn.nodes[1].value.data.fill_(2.5)
    data = digits.Data(one, torch.zeros(4).long(), one, torch.tensor([0, 0, 0, 1]), "ones")
    out = example.Console(file=io.StringIO(), width=100)
    out.print(example.View(pcn, data, 1, out).table())
    rows = [line.split() for line in out.file.getvalue().splitlines()]
    assert rows[1:3] == [["hidden", "1", "0.12500", "█" * 20], ["output", "0.12500", "█" * 20]]
    assert rows[3][:3] == ["all", "0.25000", "75.0%"]


@pytest.mark.parametrize("plain", [[], ["--plain"]], ids=["em", "plain"])
def test_only_a_terminal_has_a_live_view_and_learning_is_the_same(example, folder, monkeypatch, plain):
    """Lines that stay are the same in both, but for the seconds."""
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal has no live view
    shown, results, console = [], [], example.Console
    for terminal in (False, True):
        out = console(file=io.StringIO(), force_terminal=terminal, width=100)
        monkeypatch.setattr(example, "Console", lambda out=out, **_: out)
        history = example.main([*QUICK, "--data", str(folder), "--batch-size", "3", *plain])
        results.append([(e.before, e.after, e.accuracy) for e in history])
        shown.append(out.file.getvalue())
    assert results[0] == results[1]
    assert "share of the sum" not in shown[0]
    assert "\x1b" not in shown[0]
    plain_text = re.sub(r"\x1b\[[0-9;]*m", "", shown[1])
    for part in ("share of the sum", "hidden 1", "output", "of 4 test images", "epoch 2/2", "6/6 batches"):
        assert part in plain_text


QUICK = ["--hidden", "16", "--steps", "3", "--epochs", "2", "--no-plot"]


@pytest.mark.parametrize("plain", [[], ["--plain"]], ids=["em", "plain"])
def test_same_seed_same_result(example, folder, plain):
    # 8 images in batches of 3: the last one is smaller, and nodes take it without a reset
    argv = [*QUICK, "--data", str(folder), "--batch-size", "3", *plain]
    first, again, other = (example.main([*argv, "--seed", seed]) for seed in ("5", "5", "6"))
    assert [(e.before, e.after, e.accuracy) for e in first] == [(e.before, e.after, e.accuracy) for e in again]
    assert [e.after for e in first] != [e.after for e in other]


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu"])
def test_learns_idx_files(example, folder, activation):
    argv = ["--data", folder, "--activation", activation, "--steps", 10, "--epochs", 40, "--m-lr", 0.03]
    assert example.main([*QUICK[:2], *map(str, argv), "--no-plot"])[-1].accuracy == 1.0


@pytest.mark.slow
def test_runs_as_a_script_from_anywhere(folder, tmp_path):
    command = [sys.executable, FOLDER / "train_digits.py", *QUICK, "--data", folder]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 images to learn from, 4 to test on" in done.stdout


def test_no_plot_writes_nothing(example, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    example.main([*QUICK, "--data", str(folder)])
    assert set(tmp_path.iterdir()) == before


def test_divergence_says_what_to_do(example, folder):
    stops = pytest.raises(SystemExit, match=r"diverged.*lower --e-lr or --m-lr")
    with pytest.warns(UserWarning, match="are not finite after Descent"), stops:
        example.main([*QUICK, "--data", str(folder), "--e-lr", "1e30"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["--steps", "-3"], "--steps: must be at least 1, got -3"),
        (["--hidden", "8", "no"], "--hidden: invalid"),
        (["--e-lr", "0"], "--e-lr: must be a positive number, got 0"),
        (["--m-lr", "nan"], "--m-lr: must be a positive number, got nan"),
        (["--seed", "-1"], "--seed: must be from 0"),
        (["--activation", "step"], "--activation: invalid choice"),
        (["--device", "toaster"], "--device: cannot be used here: toaster"),
        (["--plot", "energies.xyz"], "--plot: energies.xyz must end in one of"),
        (["--plot", "no/such/folder/energies.png"], "--plot: no/such/folder is not a folder"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_bad_arguments(example, capsys, argv, message):
    assert message in refused(example, capsys, *argv)


def test_mnist(example, digits, mnist):
    """Six thousand images, once: most of the way to what all sixty thousand teach."""
    data = digits.load_idx(mnist)
    assert data.train_x.shape == (60_000, 784)
    assert data.test_x.shape == (10_000, 784)
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert torch.bincount(data.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    few = digits.Data(data.train_x[:6000], data.train_labels[:6000], data.test_x, data.test_labels, "a tenth of MNIST")
    pcn = example.mlp([784, 128, 10], "relu")
    trainer = example.Trainer(pcn, steps=5, e_lr=0.1, m_lr=3e-3)
    (epoch,) = example.train(pcn, few, trainer, 1, 100, 0, example.Console(quiet=True))
    assert epoch.accuracy > 0.85
