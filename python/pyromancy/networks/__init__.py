"""Networks that are made for you: perceptrons, any `torch.nn.Sequential` cut into edges, and transformers."""

from ..nodes.base import sweeping
from .layers import ScaledLinear, Skip
from .locked import LockedAlphaDropout, LockedDropout, LockedRReLU, SweptBatchNorm
from .outputs import OUTPUTS
from .pcn import PCN
from .perceptron import ACTIVATIONS, mlp
from .sequential import from_sequential
from .transformer import Embedding, SelfAttention, transformer

__all__ = [
    "ACTIVATIONS",
    "OUTPUTS",
    "PCN",
    "Embedding",
    "LockedAlphaDropout",
    "LockedDropout",
    "LockedRReLU",
    "ScaledLinear",
    "SelfAttention",
    "Skip",
    "SweptBatchNorm",
    "from_sequential",
    "mlp",
    "sweeping",
    "transformer",
]
