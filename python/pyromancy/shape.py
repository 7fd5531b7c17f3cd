"""Tensor shapes with placeholder dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import overload

from torch import SymInt, Tensor


class Shape:
    """A tensor shape in which some dimensions are placeholders.

    A concrete dimension has a fixed size; a placeholder (None) fits any size, and positions along it share
    whatever parameters the concrete dimensions have.

    Args:
        *shape: one or more dimensions, each a positive int or None.

    Raises:
        TypeError: a dimension is neither an int nor None.
        ValueError: there is no dimension, or one is not positive.
    """

    __slots__ = ("_concrete", "_raw", "_virtual")

    def __init__(self, *shape: int | None) -> None:
        if not shape:
            raise ValueError("shape must have at least one dimension, got none")
        for d in shape:
            if not isinstance(d, int | None):
                raise TypeError(f"every dimension of shape must be an int or None, got {d!r} in {shape}")
        for d in shape:
            if d is not None and d <= 0:
                raise ValueError(f"every dimension of shape must be positive, got {d} in {shape}")
        self._raw = tuple(None if d is None else int(d) for d in shape)
        self._concrete = tuple(i for i, d in enumerate(self._raw) if d is not None)
        self._virtual = tuple(i for i, d in enumerate(self._raw) if d is None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self._raw))})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Shape):
            return self._raw == other._raw
        return self._raw == other if isinstance(other, tuple) else False

    def __hash__(self) -> int:
        return hash(self._raw)  # equal to a tuple, so it must hash like one

    def __len__(self) -> int:
        return len(self._raw)

    def __iter__(self) -> Iterator[int | None]:
        return iter(self._raw)

    @overload
    def __getitem__(self, index: int) -> int | None: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int | None, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int | None, ...] | None:
        return self._raw[index]

    @property
    def rshape(self) -> tuple[int | None, ...]:
        """The dimensions as given, placeholders being None."""
        return self._raw

    @property
    def bshape(self) -> tuple[int, ...]:
        """The dimensions with 1 for each placeholder: the shape of a parameter that broadcasts."""
        return tuple(1 if d is None else d for d in self._raw)

    @property
    def size(self) -> int:
        """Product of the concrete dimensions."""
        return math.prod(self.bshape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._raw)

    @property
    def nconcrete(self) -> int:
        """Number of concrete dimensions."""
        return len(self._concrete)

    @property
    def nvirtual(self) -> int:
        """Number of placeholder dimensions."""
        return len(self._virtual)

    def compat(self, *shape: int) -> bool:
        """Whether a tensor of this concrete shape fits.

        Raises:
            TypeError: a dimension is not an int.
            ValueError: a dimension is not positive.
        """
        self._check_positive("shape", shape)
        return len(shape) == len(self._raw) and all(
            mine is None or mine == theirs for mine, theirs in zip(self._raw, shape, strict=True)
        )

    def filled(self, *fill: int) -> tuple[int, ...]:
        """The shape with its placeholders replaced, in order, by `fill`.

        Raises:
            TypeError: a size is not an int.
            ValueError: a size is not positive, or their number is not that of the placeholders.
        """
        if len(fill) != self.nvirtual:
            raise ValueError(f"fill must have one size per placeholder ({self.nvirtual}), got {len(fill)}")
        self._check_positive("fill", fill)
        sizes = iter(fill)
        return tuple(next(sizes) if d is None else d for d in self._raw)

    def coalesce(self, tensor: Tensor) -> tuple[Tensor, dict[str, int]]:
        """Flatten a tensor into a matrix: placeholder dimensions are its rows, concrete ones its columns.

        Args:
            tensor: a tensor with `ndim` dimensions.

        Returns:
            The matrix, a view where the strides allow one, and what `disperse` needs to undo this.

        Raises:
            ValueError: the tensor has another number of dimensions.
        """
        if tensor.ndim != self.ndim:
            raise ValueError(f"tensor must have {self.ndim} dimensions to fit {self}, got shape {tuple(tensor.shape)}")
        pragma = {f"d{i}": d for i, d in enumerate(tensor.shape)}
        rows = math.prod(tensor.shape[i] for i in self._virtual)
        columns = math.prod(tensor.shape[i] for i in self._concrete)
        return tensor.permute(*self._virtual, *self._concrete).reshape(rows, columns), pragma

    def disperse(self, tensor: Tensor, pragma: dict[str, int]) -> Tensor:
        """Undo `coalesce`.

        Args:
            tensor: a matrix, rows by columns.
            pragma: what `coalesce` returned with it.

        Returns:
            The tensor in its original shape.

        Raises:
            ValueError: the matrix does not have the rows and columns that `pragma` says.
        """
        order = (*self._virtual, *self._concrete)
        sizes = [pragma[f"d{i}"] for i in order]
        rows, columns = math.prod(sizes[: self.nvirtual]), math.prod(sizes[self.nvirtual :])
        if tuple(tensor.shape) != (rows, columns):
            raise ValueError(f"tensor must have shape ({rows}, {columns}) by pragma, got {tuple(tensor.shape)}")
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return tensor.reshape(sizes).permute(inverse)

    @staticmethod
    def _check_positive(name: str, sizes: tuple[int, ...]) -> None:
        for d in sizes:
            if not isinstance(d, int | SymInt):  # the latter of what torch.export traces
                raise TypeError(f"every size in {name} must be an int, got {d!r} in {sizes}")
        for d in sizes:
            if d <= 0:
                raise ValueError(f"every size in {name} must be positive, got {d} in {tuple(sizes)}")
