"""Eager references of `infer_chain_`, all E-steps of a chain of nodes, and `chain_mstep`, its gradients after them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import ACTIVATIONS
from .schema import kept_predictions

_BY_NUMBER = tuple(ACTIVATIONS.values())


def infer_chain_(
    states: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    precisions: list[Tensor | None],
    prior: Tensor | None,
    grams: list[Tensor | None],
    activations: list[int],
    parameters: list[float],
    predicted: list[bool],
    free: list[bool],
    steps: int,
    lr: float,
    velocities: list[Tensor],
    momentum: float,
    dampening: float,
    nesterov: bool,
    resume: bool,
    energies: Tensor | None,
    matmul_precision: str = "highest",
) -> list[Tensor]:
    """All E-steps of a chain of nodes, in place on the free states.

    Edge l predicts node l + 1 as ``mu = after(W before(z_l) + b)``. With errors ``e_l = P_l (z_l - mu_l)`` a step
    is ``z_l <- z_l - lr (e_l - before'(z_l) W^T (after' e_{l+1}))``, on all free nodes at once, with the momentum of
    `torch.optim.SGD` where there are velocities.

    Args:
        states: ``[B, n_l]`` each, contiguous.
        weights: W of every edge.
        biases: b of every edge.
        precisions: P of every node: None for 1, its diagonal ``[n]``, or the matrix ``[n, n]``, symmetric.
        prior: constant prediction of node 0, ``[1 or B, n_0]``.
        grams: of an edge from a free to a clamped node, ``W^T P W`` where the feedback is to be computed as
            ``W^T P (z - b) - (W^T P W) before(z)``; none where energies are recorded, which take the errors.
        activations: before and after of every edge, as numbers in `ACTIVATIONS`.
        parameters: the parameters of these.
        predicted: whether a node has an energy.
        free: whether a node's state is updated.
        steps: number of E-steps.
        lr: their rate.
        velocities: like `states`, or empty for no momentum.
        momentum: as in `torch.optim.SGD`.
        dampening: as in `torch.optim.SGD`.
        nesterov: as in `torch.optim.SGD`.
        resume: whether `velocities` hold those of earlier steps; else the first gradient starts them.
        energies: ``[steps, nodes, B]``, set to the nodes' energies before each step, without log-determinants.
        matmul_precision: of float32 products in kernels for GPUs, "highest", "high" or "medium" as in
            `torch.set_float32_matmul_precision`, which the library's products follow by themselves.

    Returns:
        What `chain_mstep` may reuse: the predictions ``[B, n]`` that `kept_predictions` names, and a table ``[*, 2]``
        of their edges and of a hash of what they were made of. The reference, which reuses nothing, has no hash.
        On a GPU nothing: to find out whether anything has changed, the host would have to wait for the device.
    """
    count = len(states)
    edges = _Edges(states, weights, biases, activations, parameters)
    predict, functions = edges.predict, edges.functions

    def weigh(node: int, residual: Tensor) -> Tensor:
        return _weigh(precisions[node], residual)

    constant = {i + 1: predict(i)[1] for i in range(count - 1) if predicted[i + 1] and not free[i]}
    if prior is not None:
        constant[0] = prior.expand_as(states[0])
    drives: dict[int, tuple[Tensor, Tensor]] = {}  # W^T P (z - b) and W^T P W, where that serves
    for i, matrix in enumerate(grams):
        if matrix is not None:
            bias = biases[i]
            drives[i] = weigh(i + 1, states[i + 1] if bias is None else states[i + 1] - bias) @ weights[i], matrix
    for step in range(steps):
        errors: list[Tensor | None] = [None] * count
        feedback: list[Tensor | None] = [None] * count
        for i in range(count):
            if not predicted[i]:
                continue
            if i - 1 in drives:
                before, p = functions[2 * (i - 1)]
                drive, gram = drives[i - 1]
                feedback[i - 1] = drive - before[0](states[i - 1], p) @ gram
                continue
            product: Tensor | None = None
            if i in constant:
                prediction = constant[i]
            else:
                product, prediction = predict(i - 1)
            residual = states[i] - prediction
            error = errors[i] = weigh(i, residual)
            if energies is not None:
                energies[step, i] = 0.5 * (residual * error).sum(1)
            if product is not None:
                after, q = functions[2 * (i - 1) + 1]
                feedback[i - 1] = (error * after[1](product, q)) @ weights[i - 1]
        for i in range(count):
            if not free[i]:
                continue
            gradient = torch.zeros_like(states[i])
            if (own := errors[i]) is not None:
                gradient += own
            if (back := feedback[i]) is not None:
                before, p = functions[2 * i]
                gradient -= before[1](states[i], p) * back
            if velocities:
                if step == 0 and not resume:
                    velocities[i].copy_(gradient)
                else:
                    velocities[i].mul_(momentum).add_(gradient, alpha=1 - dampening)
            step_along = gradient
            if velocities:
                step_along = gradient + momentum * velocities[i] if nesterov else velocities[i]
            states[i].sub_(step_along, alpha=lr)
    if energies is not None:
        for i in range(count):
            if not predicted[i]:
                energies[:, i] = 0
    return what_is_known(states, weights, activations, predicted, free, constant)


def what_is_known(
    states: list[Tensor],
    weights: list[Tensor],
    activations: list[int],
    predicted: list[bool],
    free: list[bool],
    predictions: dict[int, Tensor],
) -> list[Tensor]:
    """What `infer_chain_` returns that keeps no hash, from the constant predictions of nodes."""
    if states[0].is_cuda:
        return []
    kept = kept_predictions(weights, activations, predicted, free)
    table = torch.tensor([[edge, 0] for edge in kept], dtype=torch.int64).reshape(-1, 2)
    return [*(predictions[edge + 1] for edge in kept), table]


def chain_mstep(
    states: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor | None],
    precisions: list[Tensor | None],
    prior: Tensor | None,
    activations: list[int],
    parameters: list[float],
    predicted: list[bool],
    for_weight: list[bool],
    for_bias: list[bool],
    for_precision: list[bool],
    known: list[Tensor],
) -> list[Tensor]:
    """Gradients of a chain's batch-mean energy for its weights and biases, from the states at hand.

    With the errors of `infer_chain_` and ``d = after' e`` they are ``-mean(d before(z)^T)`` and ``-mean(d)``.

    Args:
        states: as for `infer_chain_`, like all up to `predicted`.
        weights: W of every edge.
        biases: b of every edge.
        precisions: P of every node.
        prior: constant prediction of node 0.
        activations: before and after of every edge.
        parameters: the parameters of these.
        predicted: whether a node has an energy.
        for_weight: the edges whose weight's gradient is wanted.
        for_bias: the edges whose bias's gradient is wanted.
        for_precision: the nodes whose second moment is wanted: of a diagonal precision ``mean(e (z - mu))``,
            elementwise, and of a matrix ``mean(e e^T)``.
        known: what `infer_chain_` returned, or empty: predictions that are taken over where states, weights and biases
            that they were made of have the same contents still.

    Returns:
        What is wanted, for the weights, the biases and the precisions in this order.
    """
    edges = _Edges(states, weights, biases, activations, parameters)
    batch = max(1, states[0].shape[0])
    for_weights, for_biases, moments = [], [], []
    for i, state in enumerate(states):
        if not predicted[i]:
            continue
        product: Tensor | None = None
        if i == 0:
            assert prior is not None
            residual = state - prior
        else:
            product, prediction = edges.predict(i - 1)
            residual = state - prediction
        error = _weigh(precisions[i], residual)
        if for_precision[i]:
            precision = precisions[i]
            full = precision is not None and precision.dim() == 2
            moments.append((error.mT @ error if full else (error * residual).sum(0)) / batch)
        if product is None or not (for_weight[i - 1] or for_bias[i - 1]):
            continue
        (before, p), (after, q) = edges.functions[2 * (i - 1) : 2 * i]
        delta = error * after[1](product, q)
        if for_weight[i - 1]:
            for_weights.append(delta.mT @ before[0](states[i - 1], p) / -batch)
        if for_bias[i - 1]:
            for_biases.append(delta.sum(0) / -batch)
    return [*for_weights, *for_biases, *moments]


class _Edges:
    """The predictions of a chain's edges."""

    def __init__(
        self,
        states: list[Tensor],
        weights: list[Tensor],
        biases: list[Tensor | None],
        activations: list[int],
        parameters: list[float],
    ) -> None:
        self.states, self.weights, self.biases = states, weights, biases
        self.functions = [(_BY_NUMBER[k], p) for k, p in zip(activations, parameters, strict=True)]

    def predict(self, edge: int) -> tuple[Tensor, Tensor]:
        """The product and the prediction."""
        (before, p), (after, q) = self.functions[2 * edge : 2 * edge + 2]
        product = F.linear(before[0](self.states[edge], p), self.weights[edge], self.biases[edge])
        return product, after[0](product, q)


def _weigh(precision: Tensor | None, residual: Tensor) -> Tensor:
    if precision is None:
        return residual
    return residual * precision if precision.dim() == 1 else residual @ precision
