"""The network of a case: its energy by the package's nodes, and by formulas of its own in plain PyTorch."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from pyromancy import get_mstep_params
from pyromancy import nodes as N

ACTIVATE = {
    "identity": lambda x: x, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu,
    "gelu": F.gelu, "leaky": lambda x: F.leaky_relu(x, 0.2), "softplus": F.softplus, "elu": F.elu,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.5), "relu6": F.relu6, "square": lambda x: 0.3 * x * x,
}  # fmt: skip
SIDE = 3  # of images


def log_cosh(z, mu):
    return torch.log(torch.cosh(z - mu))


def mixed(z, mu):
    return 0.5 * (z - mu) ** 2 + 0.05 * torch.log1p(z**2)


MODULES = {
    "standard": N.StandardGaussianNode, "isotropic": N.IsotropicGaussianNode, "factorized": N.FactorizedGaussianNode,
    "multivariate": N.MultivariateGaussianNode, "laplace": N.LaplaceNode,
    "student": lambda *s: N.StudentNode(*s, dof=2.0),
    "logcosh": lambda *s: N.LawNode(*s, law=log_cosh), "mixed": lambda *s: N.LawNode(*s, law=mixed),
    "categorical": N.CategoricalNode, "bernoulli": N.BernoulliNode, "poisson": N.PoissonNode,
}  # fmt: skip


def formula(law, node, z, mu):
    """The energy of a node, per sample, by its definition."""
    d = (z - mu).flatten(1)
    match law:
        case "standard":
            return 0.5 * (d * d).sum(1)
        case "isotropic" | "factorized":
            logvar = node.logvar.expand(d.shape)
            return 0.5 * (d * d / logvar.exp() + logvar).sum(1)
        case "multivariate":
            return 0.5 * ((d @ torch.linalg.inv(node.covariance)) * d).sum(1) + 0.5 * torch.logdet(node.covariance)
        case "laplace":
            logscale = node.logscale.expand(d.shape)
            return (d.abs() / logscale.exp() + logscale).sum(1)
        case "student":
            logscale = node.logscale.expand(d.shape)
            return (1.5 * torch.log1p(d * d / (2 * (2 * logscale).exp())) + logscale).sum(1)
        case "logcosh":
            return log_cosh(z, mu).flatten(1).sum(1)
        case "mixed":
            return mixed(z, mu).flatten(1).sum(1)
        case "categorical":
            return -(z * F.log_softmax(mu, 1)).flatten(1).sum(1)
        case "bernoulli":
            return (F.softplus(mu) - z * mu).flatten(1).sum(1)
        case "poisson":
            return (mu.exp() - z * mu).flatten(1).sum(1)
    raise AssertionError(law)


class Network(nn.Module):
    """States are `nodes[t].value`; the input is `below.value`.

    In `plain` a Laplace node has no error that is up to `rest`.
    """

    rest = 0.0

    def __init__(self, case):
        super().__init__()
        generator = torch.Generator().manual_seed(case.seed)

        def randn(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.case = case
        self.trailing = (SIDE, SIDE) if case.images else ()
        self.below = N.FixedNode(case.input, *self.trailing)
        self.nodes = nn.ModuleList(MODULES[n.law](n.width, *self.trailing) for n in case.nodes)
        self.parts, self.forms = nn.ParameterDict(), {}
        self.double()
        for name, p in self.nodes.named_parameters():
            if p.requires_grad and "value" not in name:
                p.data.copy_(0.3 * randn(*p.shape))
        for t, node in enumerate(case.nodes):
            for i, edge in enumerate(node.edges):
                n = case.input if edge.source < 0 else case.nodes[edge.source].width
                n = {"slice": (n + 1) // 2, "joined": n + case.input}.get(edge.kind, n)
                kernel = (3, 3) if case.images else ()
                form = (node.width, n, *kernel)
                key, kind = f"{t}_{i}", edge.kind
                if kind in ("tied", "transposed"):
                    wanted = form if kind == "tied" else (n, node.width)
                    known = (
                        []
                        if kind == "transposed" and kernel
                        else [k for k, p in self.parts.items() if tuple(p.shape) == wanted]
                    )
                    if known:
                        self.forms[key] = kind, known[0]
                        continue
                    kind = "linear"
                if kind == "skip" and n != node.width:
                    kind = "linear"
                if kind == "constant":
                    self.parts["w" + key] = nn.Parameter(0.3 * randn(node.width, *[1 for _ in kernel]))
                elif kind != "skip":
                    self.parts["w" + key] = nn.Parameter(0.7 * randn(*form) / math.sqrt(math.prod(form[1:])))
                if kind == "bias":
                    self.parts["b" + key] = nn.Parameter(0.3 * randn(node.width))
                if kind == "masked":
                    self.register_buffer("m" + key, (randn(*form) < 0.3).double())
                self.forms[key] = kind, "w" + key

    def _applied(self, f, weight, bias=None):
        return F.conv2d(f, weight, bias, padding=1) if self.case.images else F.linear(f, weight, bias)

    def predict(self, t, z, sweeps=False):
        """The prediction of a node, of states ``z``, the last of which is the input; or where it begins."""
        node, total = self.case.nodes[t], None
        for i, edge in enumerate(node.edges):
            if sweeps and not edge.sweeps:
                continue
            (kind, name), of = self.forms[f"{t}_{i}"], z[edge.source]
            if kind == "slice":
                of = of[:, of.shape[1] // 2 :]
            f = ACTIVATE[edge.activation](of)
            weight = None if kind == "skip" else self.parts[name]
            match kind:
                case "skip":
                    part = of
                case "constant":
                    part = weight.expand(len(of), *weight.shape[:1], *self.trailing)
                case "bias":
                    part = self._applied(f, weight, self.parts["b" + name[1:]])
                case "masked":
                    part = self._applied(f, weight * getattr(self, "m" + name[1:]))
                case "transposed":
                    part = f @ weight
                case "norm":
                    part = self._applied(F.layer_norm(f, f.shape[1:]), weight)
                case "softmax":
                    part = self._applied(torch.softmax(f, 1), weight)
                case "joined":
                    part = self._applied(torch.cat([f, z[-1]], 1), weight)
                case "gate":
                    part = self._applied(f * torch.sigmoid(of), weight)
                case _:
                    part = self._applied(f, weight)
            if edge.scale != 1:
                part = edge.scale * part
            total = part if total is None else total + part
        return ACTIVATE[node.after](total)

    def states(self):
        return [*(n.value for n in self.nodes), self.below.value]

    def free(self):
        return [n.value for n, of in zip(self.nodes, self.case.nodes, strict=True) if not of.clamped]

    def learned(self):
        return list(get_mstep_params(self))

    def _total(self, z, of, base=None):
        total = None
        for t, node in enumerate(self.case.nodes):
            energy = of(t, self.predict(t, z if base is None else base))
            if node.weight != 1:
                energy = node.weight * energy
            if node.prior == "square":
                energy = energy + 0.05 * z[t].square().flatten(1).sum(1)
            elif node.prior == "tails":
                energy = energy + 0.1 * torch.log1p((z[t] - 0.3) ** 2).flatten(1).sum(1)
            total = energy if total is None else total + energy
        return total

    def energy(self):
        """As a user writes it."""
        return self._total(self.states(), lambda t, mu: self.nodes[t].energy(mu))

    def plain(self, z=None, base=None):
        """The same by formulas, of the states as they are or of others, and predictions by those or by a base."""
        z = self.states() if z is None else z

        def of(t, mu):
            law, state = self.case.nodes[t].law, z[t]
            if self.rest and law == "laplace":
                state = torch.where((state - mu).abs() <= self.rest, mu, state)
            return formula(law, self.nodes[t], state, mu)

        return self._total(z, of, base)

    def start(self, x, *given):
        """Set all states: clamped nodes to what is given; others to what is given, too, or to predictions."""
        self.below.init(x)
        for t, (node, of, value) in enumerate(zip(self.nodes, self.case.nodes, given, strict=True)):
            swept = self.case.sweep and not of.clamped and any(e.sweeps for e in of.edges)
            node.init(self.predict(t, self.states(), True) if swept else value)

    def data(self, size, seed, layout="plain"):
        """Random data for `start`, in float64, or rounded to float32."""
        generator = torch.Generator().manual_seed(seed)

        def drawn(width, law):
            shape = (size, width, *self.trailing)
            t = 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)
            match law:
                case "categorical":
                    t = torch.softmax(2 * t, 1)
                case "bernoulli":
                    t = (t > 0).double()
                case "poisson":
                    t = (2 * t.abs()).floor()
            t = t.float().double()
            match layout:
                case "transposed":
                    return t.transpose(0, 1).contiguous().transpose(0, 1)
                case "expanded":
                    return t[:1].expand(shape)
                case "sliced":
                    return torch.cat([t, t])[:size]
                case "strided":
                    return torch.stack([t, t], 1).flatten(0, 1)[::2]
            return t

        return [drawn(self.case.input, ""), *(drawn(n.width, n.law) for n in self.case.nodes)]
