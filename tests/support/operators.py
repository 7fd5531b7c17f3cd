"""Inputs for every operator, by name: what the operator tests run through."""

import math
import os
from dataclasses import dataclass

import torch

import formulas

DIFFERENTIABLE = ("gaussian_energy", "gaussian_error", "cholesky_factor", "multivariate_energy", "multivariate_error")
MUTATES = {"estep_": ("value", "buffer")}
NO_HALF_SOLVER = ("multivariate_energy", "multivariate_energy_backward", "multivariate_energy_backward_factor",
                  "multivariate_error")  # fmt: skip

STATES = ((0, (5,)), (1, (1,)), (3, ()), (3, (63,)), (129, (129,)), (2, (3, 5, 7)), (3, (1, 63)), (5, (129, 3)))
MATRICES = ((0, 1, 3), (1, 1, 1), (3, 1, 63), (129, 1, 3), (2, 5, 17), (3, 2, 129), (4, 0, 3))
ODD_STATES = ((3, (5,)), (3, (3, 5, 7)))
if os.environ.get("TRITON_INTERPRET") == "1":  # a program takes milliseconds there
    ODD_STATES = ODD_STATES[1:]
    STATES = ((0, (5,)), (1, (1,)), (3, ()), (3, (63,)), (2, (129,)), (2, (3, 5, 7)))
    MATRICES = ((0, 1, 3), (1, 1, 1), (35, 1, 3), (1, 3, 33), (4, 0, 3))


@dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
        operator: its name.
        id: what is special here.
        inputs: arguments by name, tensors in float64.
        length: terms summed for one element of the result.
    """

    operator: str
    id: str
    inputs: dict
    length: int

    def arguments(self, dtype=torch.float64, layout=None):
        """The arguments in a dtype, and the tensors, except factors, in a layout or several in turn."""
        layouts = layout if isinstance(layout, tuple) else (layout,)
        done = {}
        for i, (name, x) in enumerate(self.inputs.items()):
            chosen = layouts[i % len(layouts)]
            if isinstance(x, torch.Tensor):
                x = x.to(dtype, copy=True)
                if chosen is not None:
                    x = (DENSE_ONLY.get(chosen.__name__, chosen) if self.keeps_rank(name) else chosen)(x)
            done[name] = x
        return done

    @property
    def written(self):
        """The arguments that it writes in place."""
        return tuple(name for name in MUTATES.get(self.operator, ()) if self.inputs[name] is not None)

    def keeps_rank(self, name):
        """Whether an argument must not be expanded: factors would be singular, written ones overlap."""
        return name == "factor" or name in self.written

    def expected(self, arguments, dtype=torch.float64):
        """What comes out, or what is in the written arguments afterwards, by the formula in `dtype`."""
        wide = {k: v.detach().to(dtype) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        return getattr(formulas, self.operator)(**wide)


def dense(t):
    return t.clone(memory_format=torch.contiguous_format)


DENSE_ONLY = {"expanded": dense, "zero_stride": dense}


def run(case, arguments):
    """Call the operator; a tuple of what it returned, or of what it wrote."""
    result = getattr(torch.ops.pyromancy, case.operator).default(**arguments)
    if case.written:
        assert result is None
        return tuple(arguments[name] for name in case.written)
    return result if isinstance(result, tuple | list) else (result,)


def logvars(node):
    """Log-variances of every kind that fits: none, one, one each, and shared along all but the first dimension."""
    kinds = {"unit": None, "scalar": torch.randn([]), "full": torch.randn(node)}
    if len(node) > 1:
        kinds["shared"] = torch.randn(node[0], *[1] * (len(node) - 1))
        kinds["shared-first"] = torch.randn(1, *node[1:])
    return {k: None if v is None else 0.5 * v.double() for k, v in kinds.items()}


def factor(n):
    """A well-conditioned Cholesky factor."""
    below = torch.randn(n, n, dtype=torch.float64).tril(-1) * (0.3 / math.sqrt(n))
    return below + torch.diag(torch.rand(n, dtype=torch.float64) + 0.5)


def cases(operator, states=STATES, matrices=MATRICES):
    """The cases of an operator, in sizes that are no multiple of any vector."""
    torch.manual_seed(7)
    return [*_MAKERS[operator](operator, states, matrices)]


def _randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def _gaussian(operator, states, matrices):
    for batch, node in states:
        shape, count = (batch, *node), math.prod(node)
        for kind, logvar in logvars(node).items():
            inputs = {"value": _randn(*shape), "pred": _randn(*shape), "logvar": logvar}
            length = count
            if operator == "gaussian_error":
                for weight in (None, _randn(batch)):
                    case_id = f"{size(shape)}-{kind}-{'unweighted' if weight is None else 'weighted'}"
                    yield Case(operator, case_id, inputs | {"weight": weight}, 1)
                continue
            if operator != "gaussian_energy":
                inputs = {"grad": _randn(batch), **inputs}
                length = 1
            if operator == "gaussian_energy_backward_logvar":
                if logvar is None:
                    continue
                length = batch * count
            yield Case(operator, f"{size(shape)}-{kind}", inputs, length)


def _cholesky(operator, states, matrices):
    for n in (1, 3, 63, 129):
        if operator == "cholesky_factor":
            offtril = _randn(n, n)
            offtril[torch.ones(n, n).triu().bool()] = math.nan  # not to be looked at
            inputs = {"logdiag": 0.5 * _randn(n), "offtril": offtril}
        else:
            inputs = {"grad": _randn(n, n), "factor": factor(n)}
        yield Case(operator, f"{n}", inputs, 1)


def _multivariate(operator, states, matrices):
    for shape in matrices:
        batch, positions, n = shape
        state = _randn(*shape)
        inputs = {"factor": factor(n)}
        if operator in ("multivariate_energy", "multivariate_error"):
            inputs = {"value": state, "pred": _randn(*shape), **inputs}
            length = n * n if operator == "multivariate_error" else n * max(n, positions)
        else:
            inputs = {"grad": _randn(batch), "whitened": state, **inputs}
            length = n
            if operator.endswith("factor"):
                grad_value, _ = formulas.multivariate_energy_backward(**inputs)
                inputs = {**inputs, "grad_value": grad_value}
                length = n * max(batch, 1) * max(positions, 1)
        yield Case(operator, size(shape), inputs, length)


_MOMENTA = {"plain": (0.0, 0.0, False), "heavy-ball": (0.9, 0.3, False), "nesterov": (0.9, 0.0, True)}


def _estep(operator, states, matrices):
    for batch, node in states:
        shape = (batch, *node)
        for feedback in (None, _randn(*shape)):
            states = {"value": _randn(*shape), "error": _randn(*shape), "feedback": feedback}
            for kind, (momentum, dampening, nesterov) in _MOMENTA.items():
                rates = {"lr": 0.1, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
                buffer = _randn(*shape) if momentum else None
                case_id = f"{size(shape)}-{'alone' if feedback is None else 'feedback'}-{kind}"
                yield Case(operator, case_id, {**states, "buffer": buffer, **rates}, 1)


def size(shape):
    """A shape as a test id."""
    return "x".join(map(str, shape)) or "scalar"


_MAKERS = {
    "gaussian_energy": _gaussian,
    "gaussian_energy_backward": _gaussian,
    "gaussian_energy_backward_logvar": _gaussian,
    "gaussian_error": _gaussian,
    "cholesky_factor": _cholesky,
    "cholesky_factor_backward": _cholesky,
    "multivariate_energy": _multivariate,
    "multivariate_energy_backward": _multivariate,
    "multivariate_energy_backward_factor": _multivariate,
    "multivariate_error": _multivariate,
    "estep_": _estep,
}
OPERATORS = tuple(_MAKERS)
# with tests of their own, in ops/
ELSEWHERE = {
    "run_plan_": "test_run_plan.py",
    "elementwise_": "test_elementwise.py",
    "secant_products_": "test_secant.py",
} | dict.fromkeys(("attention_", "attention_backward_", "layer_norm_", "layer_norm_backward_"), "test_sequences.py")
CASES = [case for operator in OPERATORS for case in cases(operator)]
LAYOUT_CASES = [
    case
    for o in OPERATORS
    for case in cases(o, states=ODD_STATES, matrices=((3, 5, 7),))
    if case.id not in ("1", "129")
]


def large_cases():
    """Enough work for several threads."""
    states = ((3, (40_001,)), (4001, (63,)), (64, (3, 21, 31)))
    return [case for o in OPERATORS for case in cases(o, states, ((1001, 1, 63), (5, 301, 17), (700, 1, 129)))]
