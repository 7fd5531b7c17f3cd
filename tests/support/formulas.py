"""What the operators mean, in plain algebra: explicit covariances and inverses, nothing from the package.

The functions take tensors of any float dtype. Expectations come from float64; the same formula in a low precision
is the eager error that a kernel is measured against. Those of a full covariance need float32 at least.
"""

import math

import torch


def per_row(per_sample, like):
    return per_sample.reshape(-1, *[1] * (like.dim() - 1))


def variance(logvar, value):
    return torch.ones_like(value) if logvar is None else logvar.exp().expand(value.shape)


def gaussian_energy(value, pred, logvar):
    var = variance(logvar, value)
    terms = (value - pred) ** 2 / var + (torch.zeros_like(value) if logvar is None else logvar.expand(value.shape))
    return (0.5 * terms.flatten(1).sum(1) if value.dim() > 1 else 0.5 * terms,)


def gaussian_energy_backward(grad, value, pred, logvar):
    gradient = per_row(grad, value) * (value - pred) / variance(logvar, value)
    return gradient, -gradient


def gaussian_energy_backward_logvar(grad, value, pred, logvar):
    slope = 0.5 * per_row(grad, value) * (1 - (value - pred) ** 2 / variance(logvar, value))
    return *gaussian_energy_backward(grad, value, pred, logvar), sum_to(slope, logvar.shape)


def gaussian_error(value, pred, logvar, weight):
    error = (value - pred) / variance(logvar, value)
    return (error if weight is None else per_row(weight, value) * error,)


def sum_to(slope, shape):
    """Sum over the batch and over the positions that share a parameter."""
    total = slope.sum(0)
    for i, d in enumerate(shape):
        if d == 1:
            total = total.sum(i, keepdim=True)
    return total if len(shape) else total.sum()


def cholesky_factor(logdiag, offtril):
    factor = torch.zeros_like(offtril)
    for i in range(len(logdiag)):
        factor[i, :i] = offtril[i, :i]
        factor[i, i] = logdiag[i].exp()
    return (factor,)


def cholesky_factor_backward(grad, factor):
    off = torch.zeros_like(factor)
    for i in range(factor.shape[0]):
        off[i, :i] = grad[i, :i]
    return torch.stack([*(grad[i, i] * factor[i, i] for i in range(factor.shape[0]))]), off


def multivariate_energy(value, pred, factor):
    precision = torch.linalg.inv(factor @ factor.T)
    d = value - pred
    quadratic = torch.einsum("bpi,ij,bpj->b", d, precision, d)
    logdet = torch.linalg.slogdet(factor @ factor.T).logabsdet
    return 0.5 * (quadratic + value.shape[1] * logdet), d @ torch.linalg.inv(factor).T


def multivariate_energy_backward(grad, whitened, factor):
    gradient = per_row(grad, whitened) * (whitened @ torch.linalg.inv(factor))  # rows of L^-T u
    return gradient, -gradient


def multivariate_energy_backward_factor(grad, whitened, grad_value, factor):
    # dF/dSigma = 1/2 (P sum(g) Sigma^-1 - sum g e e^T); from Sigma = L L^T, dF/dL = 2 dF/dSigma L below the diagonal
    error = whitened @ torch.linalg.inv(factor)
    outer = torch.einsum("bpi,bpj->ij", grad_value, error)
    by_covariance = 0.5 * (whitened.shape[1] * grad.sum() * torch.linalg.inv(factor @ factor.T) - outer)
    return ((2 * by_covariance @ factor).tril(),)


def multivariate_error(value, pred, factor):
    return ((value - pred) @ torch.linalg.inv(factor @ factor.T),)


def estep_(value, buffer, error, feedback, lr, momentum, dampening, nesterov):
    descent = error if feedback is None else error - feedback
    if buffer is None:
        return (value - lr * descent,)
    velocity = momentum * buffer + (1 - dampening) * descent
    return value - lr * (descent + momentum * velocity if nesterov else velocity), velocity


def normal_energy(value, pred, var):
    """The energy of independent components by `torch.distributions`."""
    log_prob = torch.distributions.Normal(pred, var.sqrt()).log_prob(value) + 0.5 * math.log(2 * math.pi)
    return -log_prob.flatten(1).sum(1)


def laplace_energy(value, pred, scale):
    """The energy of independent components with absolute errors by `torch.distributions`."""
    return -(torch.distributions.Laplace(pred, scale).log_prob(value) + math.log(2)).flatten(1).sum(1)


def student_energy(value, pred, scale, dof):
    """The energy of independent components with heavy tails by `torch.distributions`."""
    v = torch.tensor(float(dof), dtype=torch.float64)
    constant = torch.lgamma((v + 1) / 2) - torch.lgamma(v / 2) - 0.5 * torch.log(v * math.pi)
    return -(torch.distributions.StudentT(v, pred, scale).log_prob(value) - constant).flatten(1).sum(1)


def multivariate_normal_energy(value, pred, covariance):
    """The energy of [B, P, n] states with one covariance by `torch.distributions`."""
    normal = torch.distributions.MultivariateNormal(pred, covariance_matrix=covariance)
    return -(normal.log_prob(value) + 0.5 * value.shape[-1] * math.log(2 * math.pi)).sum(1)
