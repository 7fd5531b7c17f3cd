"""What is asked of every operator whatever it computes: registered everywhere, repeatable, honest about writes."""

import importlib
import itertools
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import chains
import operators
from numerics import DENSE, FLOATS, LOW, assert_near, name, negated, same_bits, saying, sliced, transposed
from operators import CASES, DIFFERENTIABLE, ELSEWHERE, LAYOUT_CASES, MUTATES, OPERATORS
from pyromancy import ops, plan
from pyromancy.ops import checks, in_place, reference, schema

ROOT = Path(__file__).parents[2]


def tensors(case):
    return sum(isinstance(x, torch.Tensor) and x.dim() > 0 for x in case.inputs.values())


# of every operator the call with the most tensors in it
FIRST = {name: max((case for case in LAYOUT_CASES if case.operator == name), key=tensors) for name in OPERATORS}
# the same of those that write in place, for each set of what is written
IN_PLACE = [
    max((case for case in LAYOUT_CASES if case.written == written), key=tensors)
    for written in sorted({case.written for case in LAYOUT_CASES if case.written})
]


def operator(name):
    return getattr(torch.ops.pyromancy, name).default


def has_kernel(name, key):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"pyromancy::{name}", key)


def case_id(case):
    return f"{case.operator}-{case.id}"


class TestEveryOperator:
    def test_has_cases_here(self):
        assert {*OPERATORS, *ELSEWHERE} == set(schema.SCHEMAS)
        assert all((Path(__file__).parent / file).exists() for file in ELSEWHERE.values())
        assert {case.operator for case in CASES} == {case.operator for case in LAYOUT_CASES} == set(OPERATORS)

    @pytest.mark.parametrize("name", schema.SCHEMAS)
    def test_has_a_reference_for_every_device(self, name):
        assert name in reference.KERNELS
        assert has_kernel(name, "CompositeExplicitAutograd")

    @pytest.mark.parametrize("name", OPERATORS)
    def test_has_a_fake(self, name):
        arguments = FIRST[name].arguments(torch.float32)
        with FakeTensorMode() as mode:
            fakes = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
            operator(name)(**fakes)  # raises where there is no fake: the reference would look at the data

    @pytest.mark.parametrize("name", DIFFERENTIABLE)
    def test_has_gradients(self, name):
        assert has_kernel(name, "Autograd")
        arguments = FIRST[name].arguments()
        tensors = [t.requires_grad_() for t in arguments.values() if isinstance(t, torch.Tensor)]
        output = operators.run(FIRST[name], arguments)[0]
        gradients = torch.autograd.grad(output.nansum(), tensors)
        assert all(g is not None for g in gradients)

    @pytest.mark.parametrize("name", sorted(set(OPERATORS) - set(DIFFERENTIABLE) - set(MUTATES)))
    def test_is_a_gradient_itself_otherwise(self, name):
        assert "backward" in name
        assert name.split("_backward")[0] in DIFFERENTIABLE

    def test_has_a_benchmark(self, monkeypatch):
        if not (ROOT / "bench" / "test_operators.py").exists():
            pytest.skip("this copy has no benchmarks")
        pytest.importorskip("pytest_benchmark")
        monkeypatch.syspath_prepend(ROOT)
        benchmarks = importlib.import_module("bench.test_operators").OPERATORS
        assert [name for name in schema.SCHEMAS if not benchmarks.get(name)] == []

    def test_is_bound_once(self):
        for bound in DIFFERENTIABLE:
            assert getattr(ops, bound) is operator(bound)
        assert {*in_place.WRITTEN} == {n for n in schema.SCHEMAS if operator(n)._schema.is_mutable}
        assert all(callable(getattr(ops, bound)) for bound in in_place.WRITTEN)

    def test_is_checked(self):
        assert [*checks.CHECKS] == [*schema.SCHEMAS]
        assert {*checks.MEMORY} == {*in_place.WRITTEN}


@pytest.mark.usefixtures("backend")
class TestSchema:
    @pytest.mark.parametrize("case", LAYOUT_CASES, ids=case_id)
    def test_written_arguments_are_marked(self, case):
        signature = operator(case.operator)._schema
        written = {a.name for a in signature.arguments if a.alias_info is not None and a.alias_info.is_write}
        assert written == set(MUTATES.get(case.operator, ()))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
    @pytest.mark.parametrize("case", [*FIRST.values(), *CASES[::11]], ids=case_id)
    def test_fake_foretells_shape_strides_and_dtype(self, case, dtype):
        for layout in DENSE:
            arguments = case.arguments(dtype, layout)
            with FakeTensorMode() as mode:
                fakes = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
                foretold = operators.run(case, fakes)
            for fake, real in zip(foretold, operators.run(case, arguments), strict=True):
                with saying(layout.__name__):
                    assert fake.shape == real.shape
                    assert fake.dtype == real.dtype
                    strides = zip(real.shape, fake.stride(), real.stride(), strict=True)
                    assert real.numel() == 0 or all(a == b for size, a, b in strides if size > 1)

    @pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor:UserWarning"
    )  # opcheck's own, from torch 2.14 on
    @pytest.mark.parametrize("name", OPERATORS)
    def test_opcheck(self, name):
        arguments = FIRST[name].arguments(torch.float32)
        for key, x in arguments.items():
            if isinstance(x, torch.Tensor):
                arguments[key] = x.nan_to_num().requires_grad_(name in DIFFERENTIABLE)
        torch.library.opcheck(operator(name), (), arguments)

    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    def test_opcheck_of_strided_writes(self, case):
        torch.library.opcheck(operator(case.operator), (), case.arguments(torch.float32, (sliced, transposed)))


@pytest.mark.usefixtures("backend")
class TestGradients:
    """Through the dispatcher; test_functional.py has the other way in."""

    @pytest.mark.parametrize("name", DIFFERENTIABLE)
    def test_first_and_second_derivatives(self, name):
        arguments = FIRST[name].arguments()
        keys = [k for k, x in arguments.items() if isinstance(x, torch.Tensor)]
        leaves = [arguments[k].nan_to_num().requires_grad_() for k in keys]

        def call(*tensors):
            return operators.run(FIRST[name], arguments | dict(zip(keys, tensors, strict=True)))[0]

        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.usefixtures("backend")
class TestRepeats:
    @pytest.mark.parametrize("dtype", [*FLOATS, *LOW], ids=name)
    @pytest.mark.parametrize("case", LAYOUT_CASES, ids=case_id)
    def test_to_the_last_bit(self, case, dtype):
        first, second = (operators.run(case, case.arguments(dtype)) for _ in range(2))
        assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("backend")
class TestWritesInPlace:
    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    @pytest.mark.parametrize("rate", [float("nan"), float("inf")], ids=str)
    def test_rate_must_be_finite(self, case, rate):
        with pytest.raises(RuntimeError, match="lr must be finite, got"):
            operators.run(case, case.arguments() | {"lr": rate})

    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    def test_expanded_targets_are_refused(self, case):
        for key in case.written:
            arguments = case.arguments()
            arguments[key] = arguments[key][:1].expand_as(arguments[key])
            before = arguments[key].clone()
            with pytest.raises(RuntimeError, match=f"{key} is written in place and must not be expanded"):
                operators.run(case, arguments)
            assert torch.equal(arguments[key], before)

    @pytest.mark.parametrize("number", ["momentum", "dampening"])
    def test_momentum_must_be_finite(self, number):
        with pytest.raises(RuntimeError, match=f"{number} must be finite, got nan"):
            operators.run(FIRST["estep_"], FIRST["estep_"].arguments() | {number: float("nan")})

    def test_momentum_needs_a_buffer(self):
        with pytest.raises(RuntimeError, match=r"momentum must be 0 without a buffer, got 0\.9"):
            operators.run(FIRST["estep_"], FIRST["estep_"].arguments() | {"buffer": None})

    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    def test_partial_overlap_is_refused(self, case):
        arguments = case.arguments()
        keys = [k for k, x in arguments.items() if isinstance(x, torch.Tensor)]
        shape = arguments["value"].shape
        for written in case.written:
            for other in (k for k in keys if k != written):
                shared = torch.zeros(2 * shape.numel(), dtype=torch.float64)
                one, two = shared[: shape.numel()].view(shape), shared[3 : 3 + shape.numel()].view(shape)
                turned = transposed(one).set_(shared.untyped_storage(), 0, shape, transposed(one).stride())
                for a, b in ((one, two), (two, one), (one, turned), (one, one[:1].expand(shape))):
                    message = r"is written in place and must not (overlap .* in memory|be expanded)"
                    with pytest.raises(RuntimeError, match=message):
                        operators.run(case, arguments | {written: a, other: b})
                    assert not shared.any()

    def test_two_that_are_written_may_not_be_one(self):
        arguments = FIRST["estep_"].arguments()
        with pytest.raises(RuntimeError, match="value is written in place and must not overlap buffer in memory"):
            operators.run(FIRST["estep_"], arguments | {"buffer": arguments["value"]})

    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    def test_what_is_written_may_be_an_operand(self, case):
        either = (False, True)
        for key, other, alone, nesterov in itertools.product(case.written, ("error", "feedback"), either, either):
            for layout in (None, sliced, transposed):
                arguments = case.arguments(layout=layout) | {"nesterov": nesterov}
                if alone:
                    arguments["feedback"] = None
                arguments[other] = arguments[key]
                expected = case.expected({**arguments, other: arguments[key].clone()})
                for found, exact in zip(operators.run(case, arguments), expected, strict=True):
                    assert_near(found, exact, 1)

    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    def test_neighbours_in_memory_are_fine(self, case):
        shape = case.inputs["value"].shape
        for memory in (torch.randn(2, *shape), torch.randn(*shape, 2).movedim(-1, 0)):  # one after the other, and mixed
            value, error = memory.double()
            arguments = case.arguments() | {"value": value, "error": error}
            expected = case.expected({k: x.clone() if isinstance(x, torch.Tensor) else x for k, x in arguments.items()})
            for found, exact in zip(operators.run(case, arguments), expected, strict=True):
                assert_near(found, exact, 1)

    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("way", ["operator", "package"])
    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    def test_of_tensors_that_hold_the_negative_of_their_memory(self, case, way, mode):
        """As the imaginary part of a conjugate does."""
        call = operator(case.operator) if way == "operator" else getattr(ops, case.operator)
        with mode():
            arguments = case.arguments()
            expected = case.expected(arguments)
            arguments = {k: negated(x) if isinstance(x, torch.Tensor) else x for k, x in arguments.items()}
            call(*(arguments[a.name] for a in operator(case.operator)._schema.arguments))
            for key, exact in zip(case.written, expected, strict=True):
                assert arguments[key].is_neg()
                assert_near(arguments[key], exact, 1)

    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("call", [operator("run_plan_"), ops.run_plan_], ids=["operator", "package"])
    def test_of_chains_that_hold_the_negative_of_their_memory(self, call, mode):
        with mode():
            made, operands = chains.planned(chains.problem((5, 7, 3), 4, momentum={"momentum": 0.5}, record=True))
            plain = operands.written, operands.read
            twins = tree_map_only(torch.Tensor, lambda t: torch._neg_view(-t), plain)
            call(*plain, *plan.encode(made)), call(*twins, *plan.encode(made))
            assert all(t.is_neg() for t in twins[0])
            assert all(torch.equal(a, b) for a, b in zip(plain[0], twins[0], strict=True))

    @pytest.mark.parametrize("way", ["operator", "package"])
    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    def test_autograd_notices(self, case, way):
        call = operator(case.operator) if way == "operator" else getattr(ops, case.operator)
        for key in case.written:
            for grad_mode in (False, True):
                arguments = case.arguments()
                weight = torch.ones(arguments[key].shape, dtype=torch.float64, requires_grad=True)
                product = (weight * arguments[key].detach()).sum()  # a view shares the counter
                with torch.set_grad_enabled(grad_mode):
                    call(*(arguments[a.name] for a in operator(case.operator)._schema.arguments))
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    product.backward()

    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    def test_only_what_is_written_is_a_new_version(self, case):
        arguments = case.arguments()
        operator(case.operator)(**arguments)
        versions = {k: x._version for k, x in arguments.items() if isinstance(x, torch.Tensor)}
        assert versions == {k: int(k in case.written) for k in versions}

    @pytest.mark.parametrize("case", IN_PLACE, ids=case_id)
    def test_leaves_that_require_grad_are_refused_as_by_pytorch(self, case):
        """And all else whose gradient would be lost."""
        for key in case.written:
            arguments = case.arguments()
            leaf = arguments[key].requires_grad_()
            for t in (leaf, leaf[:]):
                with pytest.raises(RuntimeError, match="leaf"):
                    t.sub_(1)
                with pytest.raises(RuntimeError, match=f"{case.operator} has no gradient"):
                    operator(case.operator)(**arguments | {key: t})
                with torch.no_grad():
                    operator(case.operator)(**arguments | {key: t})
            operator(case.operator)(**arguments | {key: leaf.detach()})
        arguments = case.arguments()
        with pytest.raises(RuntimeError, match=f"{case.operator} has no gradient, and takes a tensor of shape"):
            operator(case.operator)(**arguments | {"error": 2 * arguments["error"].requires_grad_()})

    def test_autograd_notices_chains(self):
        for call in (operator("run_plan_"), ops.run_plan_):
            made, operands = chains.planned(chains.problem((5, 7, 3), 4, momentum={"momentum": 0.5}, record=True))
            with torch.no_grad():
                call(operands.written, operands.read, *plan.encode(made))
            assert [t._version for t in operands.written] == [1] * 3  # a state, its velocity, and the energies
            assert not any(t._version for t in operands.read)
        operands.read[0].requires_grad_()
        with pytest.raises(RuntimeError, match="run_plan_ has no gradient"):
            ops.run_plan_(operands.written, operands.read, *plan.encode(made))


def wrong(case, key, change):
    arguments = case.arguments(torch.float32)
    arguments[key] = change(arguments[key])
    return arguments


WRONG = {
    "longer": lambda t: torch.cat([t, t[:1]]),
    "more-dimensions": lambda t: t[None, None],
    "complex": lambda t: t.to(torch.complex64),
    "integer": lambda t: t.to(torch.int32),
    "other-float": lambda t: t.double(),
}


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("name", OPERATORS)
class TestWrongArguments:
    """One argument at a time is spoilt."""

    def spoilt(self, name, change):
        case = FIRST[name]
        keys = [k for k, v in case.inputs.items() if isinstance(v, torch.Tensor)]
        return [(case, key) for key in keys if len(keys) > 1]

    def test_every_backend_refuses(self, backend, name, change):
        for case, key in self.spoilt(name, change):
            with pytest.raises(RuntimeError, match=r"must (have|be|broadcast)"):
                operators.run(case, wrong(case, key, WRONG[change]))

    def test_fake_refuses(self, name, change):
        for case, key in self.spoilt(name, change):
            arguments = wrong(case, key, WRONG[change])
            with FakeTensorMode() as mode:
                fakes = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
                with pytest.raises(RuntimeError, match=r"must (have|be|broadcast)"):
                    operators.run(case, fakes)
