"""The ways to run E-steps and M-steps that the tests of the theory put to the same formulas."""

import torch

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
