"""Ways to run an EM batch: the documented loop, the inference loop, and all of it in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import pyromancy

from .settings import ADAM_RATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .network import Problem

    Batch = Callable[[], None]


def plain(problem: Problem) -> Batch:
    """The documented loop, through autograd and PyTorch's optimizers."""
    net, e_params, m_params = problem.net, problem.e_params, problem.m_params
    e_opt = torch.optim.SGD(e_params, lr=problem.rate)
    m_opt = torch.optim.Adam(m_params, lr=ADAM_RATE)

    def batch() -> None:
        net.init_xy(problem.x, problem.y)
        for _ in range(problem.steps):
            net.zero_grad()
            net.energy().sum().backward(inputs=e_params)
            e_opt.step()
        net.zero_grad()
        net.energy().mean().backward(inputs=m_params)
        m_opt.step()

    return batch


def inference_loop(problem: Problem, m_opt: torch.optim.Optimizer | None = None) -> Batch:
    """The same batch through `pyromancy.InferenceLoop`, with the documented optimizer if none is given."""
    net, m_params = problem.net, problem.m_params
    loop = loop_of(problem)
    m_opt = m_opt or torch.optim.Adam(m_params, lr=ADAM_RATE)

    def batch() -> None:
        net.init_xy(problem.x, problem.y)
        loop.run(problem.steps)
        m_opt.zero_grad()
        loop.backward(m_params)
        m_opt.step()

    return batch


def loop_of(problem: Problem) -> pyromancy.InferenceLoop:
    return pyromancy.InferenceLoop(problem.net.energy, problem.e_params, lr=problem.rate)


def em_step(problem: Problem) -> Batch:
    """The same batch through `pyromancy.EM`."""
    problem.adam = torch.optim.Adam(problem.m_params, lr=ADAM_RATE)
    em = em_of(problem, problem.adam)

    def batch() -> None:
        em.step(problem.x, problem.y)

    return batch


def em_of(problem: Problem, m_opt: torch.optim.Optimizer) -> pyromancy.EM:
    net = problem.net
    return pyromancy.EM(net.energy, problem.e_params, m_opt, start=net.init_xy, steps=problem.steps, lr=problem.rate)


# Loops over our nodes, by name: each makes of a problem the function that runs one batch.
LOOPS: dict[str, Callable[[Problem], Batch]] = {"plain": plain, "InferenceLoop": inference_loop, "EM": em_step}
