"""The ways to run E-steps and M-steps, which must come to the same."""

import torch
import torch.nn as nn

from pyromancy import InferenceLoop

# autograd step by step; the loop with the executor it takes itself; and with one that the test insists on
PLAIN, LOOP, CHAIN, GRAPH = "autograd", "loop", "loop: chain", "loop: graph"
WAYS = (PLAIN, LOOP, CHAIN, GRAPH)


def inference_loop(energy, free, lr, how):
    """The loop of a way other than `PLAIN`; an executor that cannot run the energy raises at its first use."""
    return InferenceLoop(energy, free, lr=lr, executor={LOOP: None, CHAIN: "chain", GRAPH: "graph"}[how])


def descent(energy, free, lr, how):
    """A function that runs as many E-steps as it is told, in place on the free states."""
    if how != PLAIN:
        return inference_loop(energy, free, lr, how).run

    def run(steps):
        for _ in range(steps):
            gradients = torch.autograd.grad(energy().sum(), free)
            with torch.no_grad():
                for z, gradient in zip(free, gradients, strict=True):
                    z.sub_(lr * gradient)

    return run


def mean_gradients(energy, free, learned, how):
    """A function that returns the gradients of the energy's mean over the batch, for the learned parameters."""
    if how == PLAIN:
        return lambda: torch.autograd.grad(energy().mean(), learned)
    loop = inference_loop(energy, free, 0.0, how)

    def gradients():
        for p in learned:
            p.grad = None
        loop.backward(learned)
        return [p.grad for p in learned]

    return gradients


def free(*shape, dtype=torch.float64):
    """A state."""
    return nn.Parameter(torch.randn(*shape, dtype=dtype))


def assert_as_autograd(energy, states, learned=(), steps=3, tolerance=1e-10, **options):
    """The loop's states and gradients are those of autograd and SGD; returns what the loop explains."""
    before = [z.detach().clone() for z in states]
    loop = InferenceLoop(energy, states, lr=0.1, **options)
    loop.run(steps)
    if learned:
        loop.backward(learned)
    found = [z.detach().clone() for z in states] + [p.grad for p in learned]
    with torch.no_grad():
        for z, start in zip(states, before, strict=True):
            z.copy_(start)
    sgd = torch.optim.SGD(states, lr=0.1, **options)
    for _ in range(steps):
        sgd.zero_grad()
        energy().sum().backward(inputs=states)
        sgd.step()
    for p in learned:
        p.grad = None
    if any(p.requires_grad for p in learned):
        energy().mean().backward(inputs=[p for p in learned if p.requires_grad])
    expected = [z.detach() for z in states] + [p.grad for p in learned]
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    return loop.explain()
