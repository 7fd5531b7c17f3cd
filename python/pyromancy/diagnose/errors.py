"""Free states as errors, by which a linear network tells how far its equilibrium is."""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import torch
from torch import Tensor

from .problem import Problem
from .watch import Term, is_whole


class NoErrors(Exception):
    """Why states cannot be told as errors; what it says goes into a diagnosis."""


@dataclass(frozen=True)
class _Edge:
    """A prediction, and its products with a dual variable: linear in that, so that their derivatives lead forward."""

    pred: Tensor
    dual: Tensor
    backs: dict[int, Tensor]  # by the place of the state that it is predicted from


class Errors:
    """Free states as errors, ``z_l = mu_l + e_l``: one sweep down the network, or up.

    With A = dz/de and the covariances ``S S^T`` of the free nodes, their own energies have the curvature
    ``(A S S^T A^T)^-1`` for the states. In a linear network the others add to that.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        params, terms = problem.params, problem.terms
        if not terms:
            raise NoErrors("the energy has none of a Gaussian node")
        weights = torch.autograd.grad(problem.total, [t.energy for t in terms], create_graph=True, allow_unused=True)
        self._terms: dict[int, tuple[Term, Tensor]] = {}
        for term, weight in zip(terms, weights, strict=True):
            for i, p in enumerate(params):
                if i not in self._terms and weight is not None and is_whole(term.value, p):
                    self._terms[i] = term, weight
        for i in range(len(params)):
            if i not in self._terms:
                raise NoErrors(f"params[{i}] has no energy of a Gaussian node")
            term, weight = self._terms[i]
            if weight.requires_grad and any(
                t is not None for t in torch.autograd.grad(weight.sum(), params, retain_graph=True, allow_unused=True)
            ):
                raise NoErrors(f"the energy of params[{i}] has a factor that depends on states")
            if not (weight > 0).all() or torch.broadcast_shapes(term.pred.shape, term.value.shape) != term.value.shape:
                raise NoErrors(f"the energy of params[{i}] does not pull every sample towards a prediction of its own")
        self._edges: dict[int, _Edge] = {}
        for i, (term, _) in self._terms.items():
            pred = term.pred.expand(term.value.shape)
            dual = torch.zeros_like(pred, requires_grad=True)
            backs: tuple[Tensor | None, ...] = ()
            if pred.requires_grad:
                backs = torch.autograd.grad(pred, params, dual, create_graph=True, allow_unused=True)
            reached = {j: back for j, back in enumerate(backs) if back is not None and back.requires_grad}
            self._edges[i] = _Edge(pred, dual, reached)
        try:
            self._order = [*TopologicalSorter({i: edge.backs for i, edge in self._edges.items()}).static_order()]
        except CycleError:
            raise NoErrors("states predict one another in a circle") from None

    def down(self, rows: Tensor) -> Tensor:
        """``S^T A^T`` times a gradient for the states: that for the errors, whitened."""
        parts = self._problem.parts(rows)
        for i in reversed(self._order):
            edge, own = self._edges[i], self._rows(i, parts[i])
            if edge.backs:
                sources = [self._problem.params[j] for j in edge.backs]
                pulls = torch.autograd.grad(edge.pred, sources, own, retain_graph=True)
                for j, pull in zip(edge.backs, pulls, strict=True):
                    parts[j] += pull
            own.copy_(self._scaled(i, own, transposed=True))
        return self._problem.flat(parts)

    def up(self, rows: Tensor) -> Tensor:
        """``A S`` times whitened errors: what they move the states by."""
        parts = self._problem.parts(rows)
        for i in self._order:
            edge, own = self._edges[i], self._rows(i, parts[i])
            moved = self._scaled(i, own, transposed=False)
            if edge.backs:
                moves = [parts[j] for j in edge.backs]
                moved = moved + torch.autograd.grad([*edge.backs.values()], edge.dual, moves, retain_graph=True)[0]
            own.copy_(moved)
        return self._problem.flat(parts)

    def precondition(self, rows: Tensor) -> Tensor:
        """``A S S^T A^T`` times a gradient for the states."""
        return self.up(self.down(rows))

    def _scaled(self, i: int, rows: Tensor, transposed: bool) -> Tensor:
        """By the root S of the node's covariance, of one sample's energy as it stands in the sum."""
        term, weight = self._terms[i]
        root = weight.detach().rsqrt().reshape(-1, *[1] * (rows.dim() - 1))
        return term.spread(rows, transposed) * root

    def _rows(self, i: int, part: Tensor) -> Tensor:
        """A view of a tensor of the state's shape as the node's energy views the state."""
        value = self._terms[i][0].value
        return part.as_strided(value.shape, value.stride())
