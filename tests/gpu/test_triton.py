"""What Triton's kernels show only on a GPU, beside the tests of every backend in test_operators.py."""

import pytest
import torch

import operators
from chains import ELEMENTWISE, check, on, problem, with_laws, with_weights_and_scales
from numerics import FLOATS, name, same_bits
from pyromancy import backends, ops
from pyromancy.ops import triton as kernels

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def on_triton():
    with backends.use("triton"):
        yield


def test_triton_serves():
    serving = {s.operator: s.backend for s in backends.report() if s.device == "cuda"}
    assert {o for o, backend in serving.items() if backend == "triton"} == set(kernels.OPERATORS)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("case", operators.large_cases(), ids=lambda case: f"{case.operator}-{case.id}")
def test_repeats_to_the_last_bit(case, dtype):
    arguments = {k: x.cuda() if isinstance(x, torch.Tensor) else x for k, x in case.arguments(dtype).items()}
    first, second = (operators.run(case, {k: x.clone() if isinstance(x, torch.Tensor) else x
                                          for k, x in arguments.items()}) for _ in range(2))  # fmt: skip
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_not_finite(bad):
    value, pred, factor = (
        torch.randn(3, 2, 65).cuda(),
        torch.randn(3, 2, 65).cuda(),
        operators.factor(65).float().cuda(),
    )
    value[1, 1, 40] = bad
    for energy in (ops.gaussian_energy(value, pred, None), ops.multivariate_energy(value, pred, factor)[0]):
        assert energy[[0, 2]].isfinite().all()
        assert not energy[1].isfinite()
    error = ops.multivariate_error(value, pred, factor)
    assert error[[0, 2]].isfinite().all()
    assert error[1, 0].isfinite().all()


def test_element_beyond_2_31():
    value = torch.zeros(2, 2**30 + 7, dtype=torch.bfloat16, device="cuda")  # 4 GB
    value[1, -1] = 3.0
    energy = ops.gaussian_energy(value, value[:1].expand_as(value), None)
    assert energy.tolist() == [0.0, 4.5]


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("way", ["tile", "steps"])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_plans_of_every_law(dtype, way, weighted, monkeypatch):
    from pyromancy.ops.triton import persistent

    monkeypatch.setattr(persistent, "height", lambda *_: 16 if way == "tile" else 0)
    for laws in (*([law] for law in ELEMENTWISE), ELEMENTWISE):
        a = problem((5, 33, 40, 3), 129, "tanh", "softplus", prior="one", clamped=(-1,), covariances="one",
                    momentum={"momentum": 0.8}, record=True, dtype=dtype)  # fmt: skip
        a = with_laws(a, [laws[i % len(laws)] for i in range(4)])
        check(on("cuda", with_weights_and_scales(a) if weighted else a))
