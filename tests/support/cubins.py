"""Every Triton kernel, compiled as its launcher calls it, for a GPU that is not here. Run as a script.

The argument is the compute capability: 80, 90 or 100. Prints a JSON object per binary: the kernel, the element type,
registers per thread, and bytes per thread of local memory, which is where registers are spilled to.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import chains
import operators
from numerics import FLOATS, LOW, contiguous, name, transposed
from pyromancy import plan
from pyromancy.ops import schema
from pyromancy.ops import triton as kernels
from pyromancy.ops.triton import persistent, rule
from pyromancy.plan import Law, Learned, Learning, Rule, RuleKind

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ALIGNED = {"states": ((64, (512,)),), "matrices": ((64, 1, 64),)}  # wide loads
ODD = {"states": ((3, (3, 5, 7)),), "matrices": ((3, 5, 7),)}  # nothing is known of strides
ONES = {"states": ((1, (1,)),), "matrices": ((1, 1, 1),)}  # Triton makes a constant of every argument that is 1
LONG = {"states": ((1, (9001,)),), "matrices": ((1, 1, 200),)}  # sums in two stages


class Driver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def by_tensors(cases):
    """From the call with the fewest tensors to the one with the most, which gives every optional argument."""
    return sorted(cases, key=lambda c: sum(isinstance(x, torch.Tensor) and x.dim() > 0 for x in c.inputs.values()))


def cases():
    for operator in operators.OPERATORS:
        aligned, odd = (by_tensors(operators.cases(operator, **sizes)) for sizes in (ALIGNED, ODD))
        for dtype in FLOATS + LOW:
            yield aligned[-1], dtype, contiguous
        yield odd[-1], torch.float32, (contiguous, transposed)
        yield odd[0], torch.float64, contiguous
        for sizes in (ONES, LONG):
            yield by_tensors(operators.cases(operator, **sizes))[-1], torch.float32, contiguous


def chain_call(problem, learn=False):
    """Arguments of `run_plan_`, with the gradients for weights and log-variances where they are asked for."""
    options = {}
    if learn:
        named = ((Learned.WEIGHT, problem["weights"]), (Learned.LOGVAR, problem["precisions"]))
        targets = [(what, i, 0, torch.empty_like(t), ()) for what, some in named for i, t in enumerate(some)
                   if t is not None and (what is Learned.WEIGHT or t.dim() == 1)]  # fmt: skip
        options = {"targets": targets, "learning": Learning.AT_THE_END, "rules": (Rule(),)}
    made, operands = chains.planned(problem, **options)
    ints, numbers = plan.encode(made)
    return {"written": operands.written, "read": operands.read, "plan": ints, "numbers": numbers}


ELEMENTWISE = chains.ELEMENTWISE
IN_ONE_KERNEL = [law for law in ELEMENTWISE if not law.has_parameter and law is not Law.EXPRESSION]


def of_laws(problem, some):
    """The same, its nodes taking turns with some laws that go element by element, and weights per sample for each."""
    laws = [some[i % len(some)] for i in range(len(problem["states"]))]
    for i, precision in enumerate(problem["precisions"]):
        if precision is not None and precision.dim() == 2:
            laws[i] = Law.FULL_GAUSSIAN
    weights = [z.new_ones(len(z)) for z in problem["states"]]
    return chains.with_laws(problem, laws) | {"sample_weights": weights}


def of_classes(problem):
    """The same, its last node categorical."""
    laws = [Law.GAUSSIAN for _ in problem["states"]]
    thetas = [None for _ in laws]
    laws[-1] = Law.CATEGORICAL
    return problem | {
        "laws": laws, "thetas": thetas, "precisions": thetas, "activations": [*problem["activations"][:-1], 0],
        "sample_weights": [z.new_ones(len(z)) for z in problem["states"]],
    }  # fmt: skip


def chain_calls():
    """Arguments and types of plans: the steps one by one, and every tile and kind of product of all in one kernel.

    Each of Gaussian nodes, and of every law.
    """
    options = chains.OPTIONS["everything"] | {"record": True}
    for dtype in FLOATS:
        for f, widths in (("gelu", (64, 256, 16)), ("softplus", (5, 33, 7, 3))):
            problem = chains.problem(widths, 64, dtype=dtype, **options | {"before": f, "after": f})
            persistent.height = lambda *_: 0
            plain = problem | {"precisions": [None] * len(widths)}
            of_every_law = [of_laws(p, laws) for p in (problem, plain) for laws in (ELEMENTWISE, ELEMENTWISE[::-1])]
            for some in (problem, *of_every_law):
                yield chain_call(some, learn=True), dtype
            yield chain_call(of_classes(problem)), dtype
    options |= {"covariances": False, "before": "gelu_tanh", "after": "gelu"}
    for widths, products in (((64, 256, 256, 16), "highest"), ((5, 33, 7, 3), "highest"), ((5, 33, 7, 3), "medium")):
        for tall in persistent._TILES:
            problem = chains.problem(widths, 64, dtype=torch.float32, **options)
            problem |= {"precisions": [torch.ones(n) for n in widths], "matmul_precision": products}
            persistent.height = lambda *_, tall=tall: tall
            for some in (problem, of_laws(problem, IN_ONE_KERNEL)):
                yield chain_call(some), torch.float32


def rule_calls():
    """Arguments and types of plans that learn: every rule with every option, its count on the host and the device."""
    rules = (
        Rule(RuleKind.SGD, 0.1), Rule(RuleKind.SGD, 0.1, 0.1, 0.9, 0.1, maximize=True, fresh=True),
        Rule(RuleKind.SGD, 0.1, 0.1, 0.9, 0.1, nesterov=True), Rule(RuleKind.ADAM, 0.1, 0.0, 0.9, 0.99, 1e-8),
        Rule(RuleKind.ADAM, 0.1, 0.1, 0.9, 0.99, 1e-8, maximize=True),
        Rule(RuleKind.ADAM, 0.1, 0.1, 0.9, 0.99, 1e-8, decoupled=True),
        Rule(RuleKind.RMSPROP, 0.1, 0.1, 0.9, 0.0, 1e-8), Rule(RuleKind.RMSPROP, 0.1, 0.0, 0.9, 0.9, 1e-8),
    )  # fmt: skip
    for dtype, rule_, on_host, slots in itertools.product(FLOATS, rules, (False, True), (3, 4)):
        rule.on_host = lambda _, here=on_host: here
        problem = chains.problem((64, 256, 16), 64, dtype=dtype) | {"swept": [False, True, False]}
        w = problem["weights"][0]
        own = tuple(torch.zeros_like(w) for _ in range(slots))
        kept = (torch.zeros(()), *own[1:]) if rule_.kind.counts_steps else own[:1]
        targets = [(Learned.WEIGHT, 0, 0, w, kept)]
        made, operands = chains.planned(problem, targets, learning=Learning.AT_THE_END, rules=(rule_,))
        ints, numbers = plan.encode(made)
        yield {"written": operands.written, "read": operands.read, "plan": ints, "numbers": numbers}, dtype


def calls():
    """Operator, arguments and element type."""
    for case, dtype, layout in cases():
        yield case.operator, case.arguments(dtype, layout), dtype
    for arguments, dtype in itertools.chain(chain_calls(), rule_calls()):
        yield "run_plan_", arguments, dtype


def compile_all():
    """The binaries, each with the element type that it was compiled for first."""
    compiled = {}
    current = []
    run = JITFunction.run

    def warm_up(self, *args, grid, warmup, **options):
        binary = run(self, *args, grid=grid, warmup=True, **options)
        compiled.setdefault(binary.hash, (self.__name__, *current, binary))

    JITFunction.run = warm_up
    launchers, reason = kernels.load()
    assert launchers, reason
    for operator, arguments, dtype in calls():
        current[:] = [name(dtype)]
        order = [a.name for a in getattr(torch.ops.pyromancy, operator).default._schema.arguments]
        launchers[operator](*(arguments[key] for key in order))
    return compiled.values()


def usage(binary):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        text = subprocess.run([TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text.stdout).groups())
    return {"registers": registers, "spilled": stack + local, "shared": binary.metadata.shared}


def main():
    assert {*operators.OPERATORS, *operators.ELSEWHERE} == set(kernels.OPERATORS) == set(schema.SCHEMAS)
    triton.runtime.driver.set_active(Driver(int(sys.argv[1])))
    for kernel, dtype, binary in compile_all():
        print(json.dumps({"kernel": kernel, "dtype": dtype, **usage(binary)}))


if __name__ == "__main__":
    main()
