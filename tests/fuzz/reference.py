"""A network by its formulas, inferred and learned by float64 autograd."""

import copy

import torch

import pyromancy as pyro
from pyromancy import methods

from .cases import TARGET_LAWS

# Adam and the like divide a gradient by its own size: with the usual epsilon they would multiply rounding by up to 1e8.
OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, 0.05),
    "momentum": lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.5, nesterov=True),
    "decay": lambda ps: torch.optim.SGD(ps, 0.05, weight_decay=0.1),
    "adam": lambda ps: torch.optim.Adam(ps, 0.01, eps=1e-2),
    "adamw": lambda ps: torch.optim.AdamW(ps, 0.01, eps=1e-2, weight_decay=0.1),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, 0.01, eps=1e-2),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, 0.01, eps=1e-2),
}
RULED = ("descent", "nesterov", "adam", "heun", "sequential", "errors", "fixed")  # written down here


def method_of(case, lr, noise=None):
    """The method, or None for the short form of descent."""
    match case.method:
        case "descent" | "nesterov":
            return None
        case "errors":
            return methods.Descent(lr, coordinates="errors")
        case "adam":
            return methods.Adam(lr, eps=1e-2)
        case "heun":
            return methods.Heun(lr, adaptive=False)
        case "accelerated":
            return methods.Accelerated()
        case "accelerated-states":
            return methods.Accelerated(coordinates="states")
        case "rated":
            return methods.Accelerated(lr, coordinates="states")
        case "lbfgs":
            return methods.LBFGS(3, coordinates="states")
        case "sequential":
            return methods.Sequential(lr)
        case "langevin":
            generator = torch.Generator()
            generator.set_state(torch.Generator().manual_seed(case.seed).get_state() if noise is None else noise)
            return methods.Langevin(lr, temperature=0.1, generator=generator)
        case "fixed":
            return methods.FixedPrediction(1.0)
    raise AssertionError(case.method)


class Reference:
    """A network, and what happens to it.

    A neighbour (`off` is not 0) has its weights, its data, the states that begin a batch, every gradient, and errors
    that move in the place of states, relatively off by so much, by random signs. Only where a law has a kink its states
    are the predictions of its own weights after a sweep: there an error of 0 has to be 0. Another neighbour takes what
    may be rounding, up to `rest`, for no error of such a law, as kernels do.
    """

    def __init__(self, net, case, off=0.0, seed=0, rest=0.0):
        self.net, self.case, self.off, self.lr = copy.deepcopy(net).double(), case, off, case.lr
        self.net.rest = rest
        self.signs = torch.Generator().manual_seed(seed)
        self.laws = "", *(n.law for n in case.nodes)  # the input has none
        self.round_weights()
        self.begin()
        self.optimize()

    def rounded(self, t):
        """A tensor, or of a neighbour one that is off."""
        if not self.off:
            return t
        signs = torch.randint(2, t.shape, generator=self.signs).to(t.dtype) * 2 - 1
        return t * (1 + self.off * signs)

    def round_weights(self):
        """Those of a neighbour are off."""
        for p in self.net.learned():
            p.data = self.rounded(p.data)

    def optimize(self):
        """A new optimizer of the weights that there are now."""
        learned = self.net.learned()
        self.optimizer = OPTIMIZERS[self.case.optimizer](learned) if learned else None

    def begin(self):
        """Forget what a method remembers of a batch."""
        self.inner = None

    def start(self, data):
        """Set all states."""
        given = [t if law in TARGET_LAWS else self.rounded(t) for t, law in zip(data, self.laws, strict=True)]
        with torch.no_grad():
            self.net.start(*given)
            for z in self.net.free() if "laplace" not in self.laws else ():
                z.copy_(self.rounded(z))
        self.begin()

    def follow(self, net):
        """Take the states and weights of another network."""
        with torch.no_grad():
            pairs = zip((self.net.below, *self.net.nodes), (net.below, *net.nodes), self.laws, strict=True)
            for node, other, law in pairs:
                value = other.value.detach().double()
                node.init(value if law in TARGET_LAWS else self.rounded(value))
            for p, q in zip(self.net.learned(), net.learned(), strict=True):
                p.copy_(self.rounded(q.double()))

    def energies(self):
        return self.net.plain().detach()

    def learned_energy(self):
        """What weights descend: at the states, or of a method of fixed predictions at those."""
        return self.net.plain(None, self.inner if self.case.method == "fixed" else None).mean()

    def gradients(self):
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.net.plain().sum(), self.net.free())
        return [self.rounded(g) for g in gradients]

    def run(self, steps, noise=None):
        """E-steps by the rule of the method as it stands here; of others by the package's, on autograd's gradients."""
        if self.case.method not in RULED:
            method = method_of(self.case, self.lr, noise)
            pyro.InferenceLoop(self.net.plain, self.net.free(), method=method, executor="autograd").run(steps)
            return
        for _ in range(steps):
            self.e_step()

    def e_step(self):
        case, lr, free = self.case, self.lr, self.net.free()
        match case.method:
            case "descent" | "nesterov" | "adam":
                if self.inner is None:
                    self.inner = (
                        torch.optim.Adam(free, lr, eps=1e-2) if case.method == "adam"
                        else torch.optim.SGD(free, lr, momentum=case.momentum, nesterov=case.method == "nesterov")
                    )  # fmt: skip
                for z, g in zip(free, self.gradients(), strict=True):
                    z.grad = g
                self.inner.step()
            case "heun":
                first, before = self.gradients(), [z.detach().clone() for z in free]
                with torch.no_grad():
                    for z, g in zip(free, first, strict=True):
                        z -= lr * g
                second = self.gradients()
                with torch.no_grad():
                    for z, b, g, h in zip(free, before, first, second, strict=True):
                        z.copy_(b - 0.5 * lr * (g + h))
            case "sequential":
                for parity in (0, 1):
                    with torch.no_grad():
                        for i, (z, g) in enumerate(zip(free, self.gradients(), strict=True)):
                            if i % 2 == parity:
                                z -= lr * g
            case "errors":
                self.step_errors()
            case "fixed":
                for z, g in zip(free, self.fixed_gradients(), strict=True):
                    z.data.sub_(g)
            case _:
                raise AssertionError(case.method)

    def fixed_gradients(self):
        """Of the energy at fixed predictions for its states, and of their Jacobians where they were fixed."""
        net, of = self.net, self.case.nodes
        if self.inner is None:
            self.inner = [z.detach().clone() for z in net.states()]
        base = [z.clone().requires_grad_() for z in self.inner]
        z = [z.detach().requires_grad_() for z in net.states()]
        energy = net.plain(z, base).sum()
        own, led = (torch.autograd.grad(energy, s, allow_unused=True, retain_graph=True) for s in (z, base))
        sums = [sum(g for g in pair if g is not None) for pair in zip(own, led, strict=True)]
        return [self.rounded(g) for g, node in zip(sums, of, strict=False) if not node.clamped]

    def step_errors(self):
        """``e <- e - lr dF/de``, with states that follow from errors, in the order of the nodes."""
        net, case = self.net, self.case
        errors = []
        with torch.no_grad():
            z = net.states()
            for t in range(len(case.nodes)):
                errors.append(self.rounded(z[t] - net.predict(t, z)))

        def states(errors):
            z = [n.value.detach() for n in net.nodes] + [net.below.value.detach()]
            for t, node in enumerate(case.nodes):
                if not node.clamped:
                    z[t] = net.predict(t, z) + errors[t]
            return z

        moving = [e.detach().requires_grad_(not n.clamped) for e, n in zip(errors, case.nodes, strict=True)]
        free = [e for e in moving if e.requires_grad]
        gradient = torch.autograd.grad(net.plain(states(moving)).sum(), free)
        with torch.no_grad():
            for e, g in zip(free, gradient, strict=True):
                e -= self.lr * self.rounded(g)
            for node, z in zip(net.nodes, states(moving), strict=False):
                node.value.data.copy_(z)

    def differentiate(self):
        """The gradients of the weights that learn; None for those without a part in the energy."""
        wanted = [p for p in self.net.learned() if p.requires_grad]
        self.optimizer.zero_grad()
        gradients = torch.autograd.grad(self.learned_energy(), wanted, allow_unused=True)
        for p, g in zip(wanted, gradients, strict=True):
            p.grad = None if g is None else self.rounded(g)

    def batch(self, data, steps, incremental, noise=None):
        """A whole batch of `EM`."""
        self.start(data)
        if not incremental:
            self.run(steps, noise)
            self.differentiate()
            self.optimizer.step()
            return
        for _ in range(steps):
            if incremental == "joint":
                self.differentiate()
            self.e_step()
            if incremental is True:
                self.differentiate()
            self.optimizer.step()
