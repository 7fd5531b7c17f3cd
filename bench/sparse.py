"""Sparse codes of image patches: the patches, a dictionary, and how far codes are from the lasso's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import pyromancy
from pyromancy.methods import Accelerated, Shrink
from pyromancy.nodes import FloatNode, StandardGaussianNode

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE, ATOMS, WEIGHT = 8, 128, 0.5


def patches(count: int) -> NDArray[Any]:
    """Of a photograph that scikit-learn ships, ``[count, 64]``: of mean 0 each, and of variance 1 together."""
    from sklearn.datasets import load_sample_image
    from sklearn.feature_extraction.image import extract_patches_2d

    image = load_sample_image("china.jpg").mean(2) / 255
    found = extract_patches_2d(image, (SIDE, SIDE), max_patches=count, random_state=0).reshape(count, -1)
    found -= found.mean(1, keepdims=True)
    return found / found.std()


def dictionary(data: NDArray[Any]) -> NDArray[Any]:
    """Learned from the patches, ``[128, 64]``: every atom of norm 1."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    model = MiniBatchDictionaryLearning(
        ATOMS, alpha=WEIGHT, max_iter=3, batch_size=256, random_state=0, fit_algorithm="cd"
    )
    atoms = model.fit(data).components_
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


def gap(codes: NDArray[Any], data: NDArray[Any], atoms: NDArray[Any]) -> float:
    """The duality gap of ``1/2 |x - z D|^2 + 0.5 |z|_1``, over ``|x|^2``, both summed over the patches.

    The residual is a point of the dual problem once no atom's product with it is above the weight.
    """
    codes = codes.astype(np.float64)
    residual = data - codes @ atoms
    primal = 0.5 * (residual**2).sum(1) + WEIGHT * abs(codes).sum(1)
    dual_point = residual * np.minimum(1, WEIGHT / abs(residual @ atoms.T).max(1))[:, None]
    dual = 0.5 * (data**2).sum(1) - 0.5 * ((data - dual_point) ** 2).sum(1)
    return float((primal - dual).sum() / (data**2).sum())


class Codes:
    """Those of a free node that predicts the patches through the dictionary, by FISTA."""

    def __init__(self, data: NDArray[Any], atoms: NDArray[Any], dtype: torch.dtype) -> None:
        self._node, target = FloatNode(len(atoms)), StandardGaussianNode(data.shape[1])
        edge = nn.Linear(len(atoms), data.shape[1], bias=False, dtype=dtype).requires_grad_(False)
        edge.weight.copy_(torch.as_tensor(atoms.T))
        target.to(dtype).init(torch.as_tensor(data, dtype=dtype))
        self._zeros = torch.zeros(len(data), len(atoms), dtype=dtype)
        self._node.to(dtype).init(self._zeros)
        rate = 1 / float(np.linalg.eigvalsh(atoms @ atoms.T)[-1])
        method = Accelerated(rate, coordinates="states", constraints={self._node: Shrink(WEIGHT)})
        self.loop = pyromancy.InferenceLoop(
            lambda: target.energy(edge(self._node.value)), [self._node.value], method=method
        )

    def run(self, steps: int, tol: float | None = None) -> Tensor:
        """From 0, so many steps, or for every patch fewer."""
        self._node.init(self._zeros)
        self.loop.run(steps, tol=tol)
        return self._node.value.detach()
