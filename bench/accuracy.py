"""How far functions of the kernels are off, beside PyTorch's own: `python -m bench.accuracy`.

Of float32 every 257th number is taken, of both signs, subnormal ones among them, and what it must come to is computed
in float64 by formulas that lose nothing there. Of float64 some thousands are taken, with 40 digits by mpmath.
A unit in the last place is that of the exact value, and 2^-149 or 2^-1074 where that is subnormal.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpmath
import torch
import torch.nn.functional as F
from torch import Tensor

from pyromancy import backends, ops
from pyromancy.plan.elementwise import arity, slope_of, value_of
from pyromancy.plan.expression import Op

STRIDE = 257  # of float32's numbers one in so many; prime, so that no low bit is always the same
DIGITS = {torch.float32: 24, torch.float64: 53}
SMALLEST = {torch.float32: -149, torch.float64: -1074}  # the exponent of the smallest number
KAPPA, CUBIC = math.sqrt(2 / math.pi), 0.044715
SELU_ALPHA, SELU_SCALE = 1.6732632423543772848, 1.0507009873554804934
BEND = 20.0  # of beta x, where PyTorch's softplus goes on in a straight line


@dataclass(frozen=True)
class Function:
    """A function of one number.

    Attributes:
        operation: its number in programs of `elementwise_`.
        exact: it, written in `EXACT64` or `DIGITS40`, which come first.
        torch: PyTorch's.
        low: the least input; some are of numbers above 0 alone.
        value: the operation whose result it reads beside x, of a slope.
        parameter: what it reads last.
    """

    operation: int
    exact: Callable[[Any, Any], Any]
    torch: Callable[[Tensor], Tensor]
    low: float = -math.inf
    value: int | None = None
    parameter: float = 0.0


# What formulas are written in, of tensors in float64 and of one number with 40 digits.
EXACT64 = SimpleNamespace(
    **{name: getattr(torch, name) for name in ("exp", "expm1", "log", "log1p", "tanh", "sqrt", "erfc", "sigmoid")},
    softplus=lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    sech=lambda x: 2 / (torch.exp(x) + torch.exp(-x)),
    where=lambda condition, a, b: torch.where(condition, *(torch.as_tensor(v, dtype=torch.float64) for v in (a, b))),
    root_two=math.sqrt(2),
)
DIGITS40 = SimpleNamespace(
    **{name: getattr(mpmath, name) for name in ("exp", "expm1", "log", "log1p", "tanh", "sqrt", "sech")},
    sigmoid=lambda x: 1 / (1 + mpmath.exp(-x)),
    softplus=lambda x: max(x, 0) + mpmath.log1p(mpmath.exp(-abs(x))),
    where=lambda condition, a, b: mpmath.mpf(a if condition else b),
    erfc=lambda x: mpmath.erfc(min(max(x, -1000), 1000)),  # mpmath's own does not take what is far beyond
    root_two=mpmath.sqrt(2),
)


def _gate(m: Any, x: Any) -> Any:
    return m.sigmoid(2 * KAPPA * (x + CUBIC * x * x * x))


def _gelu_tanh_slope(m: Any, x: Any) -> Any:
    inner = 2 * KAPPA * (x + CUBIC * x * x * x)
    return m.sigmoid(inner) * (1 + x * m.sigmoid(-inner) * 2 * KAPPA * (1 + 3 * CUBIC * x * x))


def _density(m: Any, x: Any) -> Any:
    return m.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _normal(m: Any, x: Any) -> Any:
    return m.erfc(-x / m.root_two) / 2


def _slope(name: str, exact: Callable[[Any, Any], Any], of: Callable[[Tensor], Tensor]) -> Function:
    def by_autograd(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(of(x).sum(), x)
        return slope

    return Function(slope_of(name), exact, by_autograd, value=value_of(name), parameter=1.0)


def _value(name: str, exact: Callable[[Any, Any], Any], of: Callable[[Tensor], Tensor]) -> Function:
    return Function(value_of(name), exact, of, parameter=1.0)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


FUNCTIONS: dict[str, Function] = {
    "exp": Function(Op.EXP, lambda m, x: m.exp(x), torch.exp),
    "expm1": Function(Op.EXPM1, lambda m, x: m.expm1(x), torch.expm1),
    "log": Function(Op.LOG, lambda m, x: m.log(x), torch.log, low=0.0),
    "log1p": Function(Op.LOG1P, lambda m, x: m.log1p(x), torch.log1p, low=-1.0),
    "sqrt": Function(Op.SQRT, lambda m, x: m.sqrt(x), torch.sqrt, low=0.0),
    "log cosh": Function(
        Op.LOGCOSH, lambda m, x: m.where(x < 0, -x, x) + m.log1p(m.expm1(m.where(x < 0, 2 * x, -2 * x)) / 2),
        lambda x: torch.logaddexp(x, -x) - math.log(2),
    ),
    "tanh": Function(Op.TANH, lambda m, x: m.tanh(x), torch.tanh),
    "tanh, slope": _slope("tanh", lambda m, x: m.sech(x) ** 2, torch.tanh),
    "sigmoid": Function(Op.SIGMOID, lambda m, x: m.sigmoid(x), torch.sigmoid),
    "sigmoid, slope": _slope("sigmoid", lambda m, x: m.sigmoid(x) * m.sigmoid(-x), torch.sigmoid),
    "softplus": _value("softplus", lambda m, x: m.where(x > BEND, x, m.softplus(x)), F.softplus),
    "softplus, slope": _slope("softplus", lambda m, x: m.where(x > BEND, 1.0, m.sigmoid(x)), F.softplus),
    "ELU": _value("elu", lambda m, x: m.where(x > 0, x, m.expm1(x)), F.elu),
    "ELU, slope": _slope("elu", lambda m, x: m.where(x > 0, 1.0, m.exp(x)), F.elu),
    "SELU": _value("selu", lambda m, x: SELU_SCALE * m.where(x > 0, x, SELU_ALPHA * m.expm1(x)), F.selu),
    "SELU, slope": _slope("selu", lambda m, x: SELU_SCALE * m.where(x > 0, 1.0, SELU_ALPHA * m.exp(x)), F.selu),
    "SiLU": _value("silu", lambda m, x: x * m.sigmoid(x), F.silu),
    "SiLU, slope": _slope("silu", lambda m, x: m.sigmoid(x) * (1 + x * m.sigmoid(-x)), F.silu),
    "GELU": _value("gelu", lambda m, x: x * _normal(m, x), F.gelu),
    "GELU, slope": _slope("gelu", lambda m, x: _normal(m, x) + x * _density(m, x), F.gelu),
    "GELU by tanh": _value("gelu_tanh", lambda m, x: x * _gate(m, x), _gelu_tanh),
    "GELU by tanh, slope": _slope("gelu_tanh", _gelu_tanh_slope, _gelu_tanh),
}  # fmt: skip


def computed(function: Function, x: Tensor) -> Tensor:
    """By the kernels."""
    reads = [x]
    if function.value is not None:
        reads.append(_run(function.value, [x], function.parameter))
    return _run(function.operation, reads, function.parameter)


def _run(operation: int, reads: list[Tensor], parameter: float) -> Tensor:
    out = torch.empty_like(reads[0])
    operands = [*range(len(reads) + 1)][: arity(operation)]
    ops.elementwise_([out], reads, [operation, *operands, *[0] * (3 - len(operands))], [len(reads) + 1], [parameter])
    return out


def numbers(dtype: torch.dtype, low: float = -math.inf, every: int = STRIDE) -> Tensor:
    """Finite numbers above `low`: of float32 one in so many, of float64 at random over all exponents and near 0."""
    if dtype == torch.float32:
        x = torch.arange(-(2**31), 2**31, every, dtype=torch.int64).to(torch.int32).view(torch.float32)
    else:
        g = torch.Generator().manual_seed(0)
        bits = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=g).view(torch.float64)
        x = torch.cat([bits, *(s * torch.randn(1000, generator=g, dtype=torch.float64) for s in (0.01, 1, 10, 200))])
    return x[x.isfinite() & (x > low)]


def exactly(function: Function, x: Tensor) -> Tensor | list[Any]:
    """What it must come to."""
    if x.dtype == torch.float32:
        return function.exact(EXACT64, x.double())
    with mpmath.workdps(40):
        return [function.exact(DIGITS40, mpmath.mpf(v)) for v in x.tolist()]


@dataclass(frozen=True)
class Error:
    """The largest errors over some numbers.

    Attributes:
        ulp: in units in the last place of the exact value.
        absolute: in the units of numbers between 1/2 and 1, of the larger of 1 and the exact value: what an E-step
            sees where a slope is next to 0.
    """

    ulp: float
    absolute: float


def error(got: Tensor, exact: Tensor | list[Any], x: Tensor) -> Error:
    """The largest errors where what is exact is finite in the dtype."""
    digits, smallest = DIGITS[x.dtype], SMALLEST[x.dtype]
    most = torch.finfo(x.dtype).max
    if isinstance(exact, list):
        with mpmath.workdps(40):
            pairs = [
                (mpmath.mpf(g) - e if math.isfinite(g) else mpmath.inf, e)
                for g, e in zip(got.tolist(), exact, strict=True)
            ]
            off = torch.tensor(
                [float(abs(o) / _unit(e, digits, smallest)) if abs(e) <= most else 0.0 for o, e in pairs]
            )
            whole = torch.tensor(
                [float(abs(o) / max(1, abs(e)) * 2**digits) if abs(e) <= most else 0.0 for o, e in pairs]
            )
    else:
        keep = exact.abs() <= most
        away = torch.where(keep, (got.double() - exact).abs(), 0.0)
        exponent = torch.frexp(exact)[1].clamp(min=smallest + digits)
        off = away / torch.ldexp(torch.ones_like(exact), exponent - digits)
        whole = away / exact.abs().clamp(min=1) * 2**digits
    off, whole = off.nan_to_num(nan=math.inf, posinf=math.inf), whole.nan_to_num(nan=math.inf, posinf=math.inf)
    return Error(off.max().item(), whole.max().item())


def _unit(exact: Any, digits: int, smallest: int) -> Any:
    exponent = mpmath.frexp(exact)[1] if exact else smallest + digits
    return mpmath.ldexp(1, max(int(exponent), smallest + digits) - digits)


def table(every: int = STRIDE) -> str:
    """All functions, in Markdown."""
    head = [
        "function",
        "float32, ulp",
        "PyTorch",
        "absolute",
        "PyTorch",
        "float64, ulp",
        "PyTorch",
        "absolute",
        "PyTorch",
    ]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, function in FUNCTIONS.items():
        row = [name]
        for dtype in DIGITS:
            x = numbers(dtype, function.low, every)
            exact = exactly(function, x)
            ours, theirs = error(computed(function, x), exact, x), error(function.torch(x), exact, x)
            row += [short(e) for e in (ours.ulp, theirs.ulp, ours.absolute, theirs.absolute)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def short(x: float) -> str:
    """An error as tables have it."""
    return f"{x:.1f}" if x < 100 else f"{x:.1e}" if math.isfinite(x) else "all"


def put(found: str, document: Path, mark: str) -> None:
    """Replace what stands in a document between two marks."""
    parts = document.read_text().split(mark)
    if len(parts) != 3:
        sys.exit(f"{document} must have two marks {mark}, has {len(parts) - 1}")
    document.write_text(f"{parts[0]}{mark}\n{found}\n{mark}{parts[2]}")


def main(argv: list[str] | None = None) -> None:
    """Print the table, or put it into a document between its two marks."""
    p = argparse.ArgumentParser(description="Errors of the kernels' functions in units in the last place.")
    p.add_argument(
        "--into", type=Path, metavar="FILE", help="replace what stands between <!-- accuracy --> marks there"
    )
    p.add_argument("--every", type=int, default=STRIDE, help=f"one in so many of float32's numbers ({STRIDE})")
    args = p.parse_args(argv)
    works, reason = backends.available("native")
    if not works:
        sys.exit(f"no compiled kernels: {reason}")
    found = table(args.every)
    if args.into is None:
        print(found)
        return
    put(found, args.into, "<!-- accuracy -->")


if __name__ == "__main__":
    main()
