"""Digits to learn from: scikit-learn's, or MNIST's from its IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

IDX_FILES = {
    "training images": "train-images-idx3-ubyte",
    "training labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class Data:
    """Images as rows of numbers in [0, 1], and their labels."""

    train_x: Tensor
    train_labels: Tensor
    test_x: Tensor
    test_labels: Tensor
    name: str

    def to(self, device: torch.device) -> Data:
        """The same data on a device."""
        return Data(
            self.train_x.to(device),
            self.train_labels.to(device),
            self.test_x.to(device),
            self.test_labels.to(device),
            self.name,
        )


def load_digits() -> Data:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn, every fifth of each kind for testing."""
    from sklearn import datasets, model_selection  # here, because MNIST needs neither

    digits = datasets.load_digits()
    split = model_selection.train_test_split(
        digits.data / 16, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    train_x, test_x, train_labels, test_labels = map(torch.from_numpy, split)
    return Data(train_x.float(), train_labels.long(), test_x.float(), test_labels.long(), "scikit-learn's digits")


def load_idx(folder: Path) -> Data:
    """MNIST, or anything else in its four files.

    Args:
        folder: where the files of `IDX_FILES` are, each with or without ``.gz``.

    Raises:
        FileNotFoundError: one is missing; the message lists the names looked for.
        ValueError: one is not what its name says, or they do not fit together.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; it should hold the files {', '.join(IDX_FILES.values())}")
    parts = [read_idx(find_idx(folder, name)) for name in IDX_FILES.values()]
    for (what, name), part in zip(IDX_FILES.items(), parts, strict=True):
        dims = 3 if "images" in what else 1
        if part.dim() != dims:
            raise ValueError(f"{name} in {folder}: {what} must have {dims} dimensions, got {tuple(part.shape)}")
        if part.numel() == 0:
            raise ValueError(f"{name} in {folder}: there are no {what}, the shape is {tuple(part.shape)}")
    train_x, train_labels, test_x, test_labels = parts
    for what, x, labels in (("training", train_x, train_labels), ("test", test_x, test_labels)):
        if len(x) != len(labels):
            raise ValueError(f"{folder} has {len(x)} {what} images, but {len(labels)} {what} labels")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"{folder} has training images of {tuple(train_x.shape[1:])} and test images of {tuple(test_x.shape[1:])}"
        )
    if test_labels.max() > train_labels.max():
        raise ValueError(f"{folder} has the test label {test_labels.max()}, which no training image has")
    x, test_x = (images.flatten(1).float() / 255 for images in (train_x, test_x))
    return Data(x, train_labels.long(), test_x, test_labels.long(), str(folder))


def load_or_stop(folder: Path | None, parser: ArgumentParser) -> Data:
    """MNIST from a folder, or scikit-learn's digits without one; what is wrong with it is told and ends a script."""
    try:
        return load_digits() if folder is None else load_idx(folder)
    except (OSError, ValueError) as error:
        parser.error(f"argument --data: {error}")


def find_idx(folder: Path, name: str) -> Path:
    """The file of that name, or its gzipped twin.

    Raises:
        FileNotFoundError: neither is there.
    """
    candidates = [folder / name, folder / f"{name}.gz"]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no {' or '.join(p.name for p in candidates)} in {folder}")


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes, gzipped or not, as a uint8 tensor.

    The format: two zero bytes, 8 for unsigned bytes, the number of dimensions; each dimension as a big-endian 32-bit
    number; then the bytes themselves, last dimension fastest.

    Raises:
        ValueError: it is no such file, or its size is not what its header says.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is gzipped, but damaged: {error}") from error
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it must begin with the bytes 00 00 08, "
            f"got {content[:3].hex(' ') or 'an empty file'}"
        )
    start = 4 + 4 * content[3]
    if content[3] == 0 or len(content) < start:
        raise ValueError(f"{path} must have a header of {max(start, 8)} bytes with its dimensions, got {len(content)}")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"{path} must have {start + math.prod(shape)} bytes for its shape {tuple(shape)}, got {len(content)}"
        )
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)
