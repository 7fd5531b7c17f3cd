"""`EM` by a method and to a tolerance: what `start; loop.run; zero_grad; loop.backward; optimizer.step` makes of it."""

import pytest
import torch

import pyromancy as pyro
from pyromancy import methods
from pyromancy.nodes import MultivariateGaussianNode, StandardGaussianNode
from twins import batches, twins

METHODS = {
    "tolerance": (methods.Accelerated(), 1e-2),
    "all-steps": (methods.Accelerated(), None),
    "a-rate": (methods.Accelerated(lr=0.05), 1e-2),
    "momentum": (methods.Accelerated(lr=0.05, momentum=0.5, coordinates="states"), None),
    "descent": (methods.Descent(0.05, coordinates="errors"), 1e-1),
    "fixed": (methods.FixedPrediction(0.5), None),
    "LBFGS": (methods.LBFGS(), 1e-2),
    "stepwise": (methods.LBFGS(memory=40), 1e-2),
}
STEPS = 6


def em_of(net, method, tol, **options):
    optimizer = torch.optim.SGD(net.m_params(), 0.05, momentum=0.9)
    return pyro.EM(
        net.energy, net.e_params(), optimizer, start=net.start, steps=STEPS, method=method, tol=tol, **options
    )


@pytest.mark.parametrize(("method", "tol"), METHODS.values(), ids=METHODS)
def test_a_batch_is_its_lines(method, tol):
    """Also where it repeats the last, where a scheduler has changed the rate, and where weights have been changed."""
    net, other = twins()
    em = em_of(net, method, tol)
    optimizer = torch.optim.SGD(other.m_params(), 0.05, momentum=0.9)
    loop = pyro.InferenceLoop(other.energy, other.e_params(), method=method)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 3, 0.5) for o in (em.optimizer, optimizer)]
    for i, (x, y) in enumerate(batches(1) * 6 + batches(4)):
        if i == 7:
            with torch.no_grad():
                for p in (*net.m_params(), *other.m_params()):
                    p.mul_(1.1)
        trace = em.step(x, y)
        with torch.no_grad():
            other.start(x, y)
        expected = loop.run(STEPS, tol=tol)
        optimizer.zero_grad()
        loop.backward(other.m_params())
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        if tol is not None:
            assert torch.equal(trace.taken, expected.taken)
            assert torch.equal(trace.converged, expected.converged)
    for p, q in zip(net.m_params(), other.m_params(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


def test_steps_of_a_batch_are_told_after_an_epoch_too():
    """Whose batches are one call that tells nothing; and every trace keeps its own."""
    net, _ = twins()
    em = em_of(net, methods.Accelerated(), 1e-2)
    data = batches(4)
    traces = [em.step(*data[0]) for _ in range(3)]
    kept = [t.taken.clone() for t in traces]
    x, y = (torch.cat(of) for of in zip(*data, strict=True))
    assert sum(part.batches for part in em.epoch(x, y, batch_size=20, shuffle=False)) == 4
    trace = em.step(*data[0])
    assert trace.taken.shape == trace.converged.shape == (20,)
    assert trace.steps == trace.taken.max()
    assert all(torch.equal(t.taken, k) for t, k in zip(traces, kept, strict=True))


def test_an_epoch_is_its_batches():
    net, other = twins()
    one, another = em_of(net, methods.Accelerated(), 1e-2), em_of(other, methods.Accelerated(), 1e-2)
    data = batches(4, last=7)
    x, y = (torch.cat(of) for of in zip(*data, strict=True))
    assert sum(part.batches for part in one.epoch(x, y, batch_size=20, shuffle=False)) == 4
    for batch in data:
        another.step(*batch)
    for p, q in zip(net.m_params(), other.m_params(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_options_may_change_between_batches():
    net, _ = twins()
    em = em_of(net, methods.Accelerated(), 1e-2)
    (batch,) = batches(1)
    for _ in range(4):
        assert em.step(*batch).converged.any()
    em.tol = None
    assert em.step(*batch).converged is None
    em.tol, em.steps = 1e-9, 2
    trace = em.step(*batch)
    assert trace.taken.tolist() == [2] * 20
    assert not trace.converged.any()


@pytest.mark.usefixtures("native_backend")
def test_free_nodes_of_full_covariance():
    """Their errors are measured by it, in the one call that learns what is learned in a plan."""
    net, other = twins(kinds=(MultivariateGaussianNode, StandardGaussianNode, StandardGaussianNode))
    with torch.no_grad():
        for p in (*net.m_params(), *other.m_params()):
            p.add_(0.1 * torch.cos(torch.arange(p.numel(), dtype=p.dtype)).reshape(p.shape))
    em = em_of(net, methods.Accelerated(), 1e-2)
    optimizer = torch.optim.SGD(other.m_params(), 0.05, momentum=0.9)
    for x, y in batches(1) * 3:
        taken = em.step(x, y).taken
        with torch.no_grad():
            other.start(x, y)
        loop = pyro.InferenceLoop(other.energy, other.e_params(), method=methods.Accelerated(), executor="graph")
        assert torch.equal(taken, loop.run(STEPS, tol=1e-2).taken)
        optimizer.zero_grad()
        loop.backward(other.m_params())
        optimizer.step()
    assert em.explain().startswith("a batch: one call of an operator")
    for p, q in zip(net.m_params(), other.m_params(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
