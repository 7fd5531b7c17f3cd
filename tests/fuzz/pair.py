"""A case, carried out twice: by the package, and by float64 autograd on formulas; they have to agree."""

import copy
import io
import os
import pickle
from collections import Counter

import torch

import pyromancy as pyro
from pyromancy import methods

from .cases import Batch, Case, Do, Epoch, Learn, Run, Step
from .network import Network

LARGE = 1e3  # a case ends where numbers are as large: it diverges, and rounding with it
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
counts: Counter[str] = Counter()


class Diverged(Exception):
    """Numbers are too large to be compared."""


def method_of(case, lr):
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
            return methods.Langevin(lr, temperature=0.1, generator=torch.Generator().manual_seed(case.seed))
        case "fixed":
            return methods.FixedPrediction(1.0)
    raise AssertionError(case.method)


def agree(ours, theirs, what, tolerance):
    """Raise AssertionError unless two tensors are the same to a share of the larger of 1 and what is expected."""
    theirs = theirs.detach()
    if not theirs.isfinite().all() or (theirs.numel() and theirs.abs().max() > LARGE):
        raise Diverged
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
    if theirs.numel():
        off, scale = (ours.detach().double() - theirs).abs().max().item(), max(1.0, theirs.abs().max().item())
        assert off <= tolerance * scale, f"{what}: off by {off:.2e}, of {scale:.2e}, where {tolerance:.0e} is allowed"


class Pair:
    """The package's network, loop and EM, and the reference network with its optimizers."""

    def __init__(self, case):
        self.case, self.lr = case, case.lr
        self.reference = Network(case)
        if case.float32:
            self.reference.float().double()  # weights that float32 has
        self.net = copy.deepcopy(self.reference)
        self.net.to(self.dtype)
        self.method = method_of(case, case.lr)
        # what learning amplifies, more of it in a long history
        self.tolerance = 1e-3 if case.float32 else 1e-9 if len(case.actions) <= 3 and self.method is None else 1e-6
        self.batch(Batch())
        self.wire()

    @property
    def dtype(self):
        return torch.float32 if self.case.float32 else torch.float64

    def wire(self):
        """A loop and an optimizer, and those of the reference."""
        case = self.case
        how = {"method": self.method}
        if self.method is None:
            how = {"lr": self.lr, "momentum": case.momentum, "nesterov": case.method == "nesterov"}
        self.loop = pyro.InferenceLoop(self.net.energy, self.net.free(), **how)
        self.optimize()

    def optimize(self):
        """New optimizers, as parameters may have been replaced."""
        case = self.case
        learned, theirs = self.net.learned(), self.reference.learned()
        self.em = self.optimizer = None
        if learned:
            self.optimizer, self.theirs = OPTIMIZERS[case.optimizer](learned), OPTIMIZERS[case.optimizer](theirs)
            how = {"method": method_of(case, self.lr)}
            if self.method is None:
                how = {"lr": self.lr, "momentum": case.momentum, "nesterov": case.method == "nesterov"}
            self.em = pyro.EM(
                self.net.energy, self.net.free(), self.optimizer, start=self.net.start, steps=3,
                incremental=case.incremental if self.method is None else False, **how,
            )  # fmt: skip

    def batch(self, action):
        data = self.net.data(action.size, action.seed, action.layout)
        with torch.no_grad():
            self.net.start(*(t.to(self.dtype) for t in data))
            self.reference.start(*data)
        self.begin()

    def begin(self):
        """The reference's memory of a batch."""
        self.inner, self.dirty = None, False

    def gradients(self):
        free = self.reference.free()
        return torch.autograd.grad(self.reference.plain().sum(), free)

    def e_step(self):
        """One E-step of the reference."""
        net, case, lr = self.reference, self.case, self.lr
        free = net.free()
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
                        for i, (z, g) in enumerate(zip(free, self.gradients_(), strict=True)):
                            if i % 2 == parity:
                                z -= lr * g
            case "errors":
                self.step_errors()
            case "fixed":
                for z, g in zip(free, self.fixed_gradients(), strict=True):
                    z.data.sub_(g)
            case _:
                raise AssertionError(case.method)

    def gradients_(self):
        with torch.enable_grad():
            return self.gradients()

    def fixed_gradients(self):
        """Of the energy at fixed predictions for its states, and of their Jacobians where they were fixed."""
        net, of = self.reference, self.case.nodes
        if self.inner is None:
            self.inner = [z.detach().clone() for z in net.states()]
        base = [z.clone().requires_grad_() for z in self.inner]
        z = [z.detach().requires_grad_() for z in net.states()]
        energy = net.plain(z, base).sum()
        own, led = (torch.autograd.grad(energy, s, allow_unused=True, retain_graph=True) for s in (z, base))
        sums = [sum(g for g in pair if g is not None) for pair in zip(own, led, strict=True)]
        return [g for g, node in zip(sums, of, strict=False) if not node.clamped]

    def step_errors(self):
        """``e <- e - lr dF/de``, with states that follow from errors, in the order of the nodes."""
        net, case = self.reference, self.case
        errors = []
        with torch.no_grad():
            z = net.states()
            for t in range(len(case.nodes)):
                errors.append(z[t] - net.predict(t, z))

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
                e -= self.lr * g
            for node, z in zip(net.nodes, states(moving), strict=False):
                node.value.data.copy_(z)

    @property
    def has_rule(self):
        """Whether the reference has the rule of the method; of others it takes the package's, on autograd."""
        return self.case.method in ("descent", "nesterov", "adam", "heun", "sequential", "errors", "fixed")

    @property
    def is_own(self):
        """Whether no product is PyTorch's own, whose bits depend on the batch: what clamped states predict may be."""
        nodes = self.case.nodes
        edges = [e for n in nodes for e in n.edges if e.source < 0 or nodes[e.source].clamped]
        return all(e.kind in ("linear", "bias") and e.activation != "square" for e in edges)

    def run(self, action):
        if self.dirty:  # what a method remembers of a batch of EM, or of a run before
            self.batch(Batch(size=2, seed=action.steps))
        self.dirty = not self.has_rule
        alone = copy.deepcopy((self.net, self.loop)) if action.alone and self.is_own else None
        if not self.has_rule:
            return self.run_by_rule(action)
        trace = self.loop.run(action.steps, record=action.record)
        energies = [self.recorded()]
        for _ in range(action.steps):
            self.e_step()
            energies.append(self.recorded())
        self.compare("run")
        if action.record and self.case.method != "fixed":
            agree(trace.energies.sum(1), torch.stack(energies), "recorded energies", self.tolerance)
        if alone is not None:
            self.alone(action, *alone)
        return None

    def recorded(self):
        """The energy of the whole batch, of a method of fixed predictions at those."""
        return self.learned_energy().detach()

    def alone(self, action, net, loop):
        """The last sample's states, to the bit, when it is alone, on another number of threads."""
        if not loop.explain().startswith("executor: chain") or not pyro.backends.available("native")[0]:
            return
        counts["alone"] += 1
        states, threads = [s.detach()[-1:].clone() for s in net.states()], torch.get_num_threads()
        if self.case.momentum:
            return  # a velocity of another batch size starts anew
        with torch.no_grad():
            net.below.init(states[-1])
            for node, z in zip(net.nodes, states, strict=False):
                node.init(z)
        torch.set_num_threads(3 - threads if threads in (1, 2) else 1)
        try:
            loop.run(action.steps, record=action.record)
        finally:
            torch.set_num_threads(threads)
        for a, b in zip(net.free(), self.net.free(), strict=True):
            assert torch.equal(a.detach(), b.detach()[-1:]), "a sample's bits are others when it is alone"

    def run_by_rule(self, action):
        """A method of which the reference takes the package's rule, on autograd's gradients of formulas in float64.

        Of `Accelerated` on errors, which is not to be had so, and in float32, where decisions by energies differ, no
        sample's energy may be above what it was; the reference then takes the states.
        """
        net, case = self.reference, self.case
        if case.method == "accelerated" or case.float32:
            before = net.plain().detach()
            self.loop.run(action.steps, record=action.record)
            with torch.no_grad():
                for a, b in zip(net.free(), self.net.free(), strict=True):
                    agree(a, a, "run", 0.0)
                    a.copy_(b)
            after = net.plain().detach()
            assert after.isfinite().all(), "energies are not finite"
            if case.method in ("accelerated", "accelerated-states", "lbfgs"):
                assert (after <= before + 10 * self.tolerance * before.abs().clamp(min=1)).all(), "an energy has risen"
            return
        state = self.method.generator.get_state() if case.method == "langevin" else None
        self.loop.run(action.steps, record=action.record)
        if state is not None:
            self.method.generator.set_state(state)
        pyro.InferenceLoop(net.plain, net.free(), method=self.method, executor="autograd").run(action.steps)
        # what decides by energies is led elsewhere by rounding, where that is all that is left
        self.compare("run", self.tolerance if case.method == "langevin" else 1e-5)

    def learn(self, action):
        if self.optimizer is None:
            return
        learned, theirs = self.net.learned(), self.reference.learned()
        if not any(p.requires_grad for p in learned):
            return
        self.optimizer.zero_grad(), self.theirs.zero_grad()
        self.loop.backward(learned)
        wanted = [p for p in theirs if p.requires_grad]
        for p, g in zip(wanted, torch.autograd.grad(self.learned_energy(), wanted, allow_unused=True), strict=True):
            p.grad = g
        names = [n for n, p in self.net.named_parameters() if any(p is q for q in learned)]
        for name, p, q in zip(names, learned, theirs, strict=True):
            zero = torch.zeros_like(q)
            agree(
                zero if p.grad is None else p.grad,
                zero if q.grad is None else q.grad,
                f"gradient of {name}",
                self.tolerance,
            )
        if action.step:
            for p, q in zip(learned, theirs, strict=True):
                if (p.grad is None) != (q.grad is None):  # a gradient of 0, or none, which decay tells apart
                    p.grad = q.grad = None
            self.optimizer.step(), self.theirs.step()
            self.compare("optimizer's step")

    def learned_energy(self):
        """What weights descend: at the states, or of a method of fixed predictions at those."""
        fixed = self.inner if self.case.method == "fixed" else None
        return self.reference.plain(None, fixed).mean()

    def em_reference(self, data):
        case, net = self.case, self.reference
        with torch.no_grad():
            net.start(*data)
        self.begin()

        def m_step(step=True):
            wanted = [p for p in net.learned() if p.requires_grad]
            self.theirs.zero_grad()
            gradients = torch.autograd.grad(self.learned_energy(), wanted, allow_unused=True)
            for p, g in zip(wanted, gradients, strict=True):
                p.grad = g
            if step:
                self.theirs.step()

        incremental = case.incremental if self.method is None else False
        for _ in range(3):
            if incremental == "joint":
                m_step(step=False)
            self.e_step()
            if incremental == "joint":
                self.theirs.step()
            if incremental is True:
                m_step()
        if not incremental:
            m_step()

    def step(self, action):
        if self.em is None or not self.has_rule or not all(p.requires_grad for p in self.net.learned()):
            return
        data = self.net.data(action.size, action.seed)
        self.em.step(*(t.to(self.dtype) for t in data))
        self.em_reference(data)
        self.dirty = True
        self.compare("EM's step")

    def epoch(self, action):
        if self.em is None or not self.has_rule or not all(p.requires_grad for p in self.net.learned()):
            return
        data = self.net.data(action.rows, action.seed)
        batches = sum(
            p.batches for p in self.em.epoch(*(t.to(self.dtype) for t in data), batch_size=action.size, shuffle=False)
        )
        parts = [*zip(*(t.split(action.size) for t in data), strict=True)]
        assert batches == len(parts), f"{batches} batches of an epoch, not {len(parts)}"
        for part in parts:
            self.em_reference(part)
        self.dirty = True
        self.compare("EM's epoch")

    def both(self, change):
        for net in (self.net, self.reference):
            change(net)

    def do(self, action):
        generator = torch.Generator().manual_seed(action.seed)
        name = sorted(self.net.parts)[action.seed % len(self.net.parts)] if self.net.parts else None
        match action.what:
            case "perturb":
                noise = [0.05 * torch.randn(p.shape, generator=generator).double() for p in self.net.learned()]
                with torch.no_grad():
                    for p, q, n in zip(self.net.learned(), self.reference.learned(), noise, strict=True):
                        p.add_(n.to(p.dtype)), q.copy_(p)
            case "replace" if name:
                self.both(lambda net: net.parts.__setitem__(name, torch.nn.Parameter(net.parts[name].detach() * 0.5)))
                self.optimize()
            case "freeze" if name:
                self.both(lambda net: net.parts[name].requires_grad_(not net.parts[name].requires_grad))
            case "mode":
                self.both(lambda net: net.train(not net.training))
            case "copy":
                self.net, self.loop = copy.deepcopy((self.net, self.loop))
                self.renew()
            case "pickle":
                # modules hold functions of this file, which pickle takes by name
                self.net, self.loop = pickle.loads(pickle.dumps((self.net, self.loop)))
                self.renew()
            case "load":
                file = io.BytesIO()
                torch.save(self.net.state_dict(), file)
                file.seek(0)
                with torch.no_grad():
                    for p in self.net.learned():
                        p.zero_()
                self.net.load_state_dict(torch.load(file, weights_only=True))
            case "move":
                self.net.to(torch.float64 if self.case.float32 else torch.float32).to(self.dtype)
                self.net.to("cpu")
                self.align()
            case "threads":
                torch.set_num_threads(1 + action.seed % 2)
            case "rate" if self.method is None:
                self.lr = self.loop.lr = 0.03 + 0.01 * (action.seed % 3)
                if self.em is not None:
                    self.em.lr = self.lr
                if self.inner is not None:
                    self.inner.param_groups[0]["lr"] = self.lr
            case "state":
                with torch.no_grad():
                    for z, q in zip(self.net.free(), self.reference.free(), strict=True):
                        z.clamp_(-0.5, 0.5), q.copy_(z)

    def renew(self):
        """After a copy: the optimizer goes with the copied parameters, and so does the reference's."""
        self.optimize()

    def align(self):
        """The reference takes what rounding has made of weights and states, and batches begin anew."""
        with torch.no_grad():
            for p, q in zip(self.net.parameters(), self.reference.parameters(), strict=True):
                q.data = p.detach().double().clone()
            for p, q in zip(self.net.buffers(), self.reference.buffers(), strict=True):
                q.data = p.detach().double().clone()
        self.optimize()
        self.dirty = True

    def compare(self, what, tolerance=None):
        tolerance = self.tolerance if tolerance is None else tolerance
        for i, (p, q) in enumerate(zip(self.net.free(), self.reference.free(), strict=True)):
            agree(p, q, f"{what}: state {i} of the free ones", tolerance)
        for (name, p), q in zip(self.net.parts.items(), self.reference.parts.values(), strict=True):
            agree(p, q, f"{what}: {name}", tolerance)
        for p, q in zip(self.net.learned(), self.reference.learned(), strict=True):
            agree(p, q, f"{what}: a parameter", tolerance)
        agree(self.loop.energy(), self.reference.plain(), f"{what}: energy()", tolerance)


def check(case: Case) -> str:
    """Carry out a case; AssertionError tells what differs.

    Returns:
        "ok", "diverged", or "refused" where the method does not take such a network.
    """
    threads = torch.get_num_threads()
    try:
        pair = Pair(case)
        for action in case.actions:
            match action:
                case Batch():
                    pair.batch(action)
                case Run():
                    pair.run(action)
                case Learn():
                    pair.learn(action)
                case Step():
                    pair.step(action)
                case Epoch():
                    pair.epoch(action)
                case Do():
                    pair.do(action)
            counts["actions"] += 1
        counts[pair.loop.explain().splitlines()[0]] += 1
        if pair.em is not None and any(isinstance(a, Step | Epoch) for a in case.actions):
            counts["EM: " + pair.em.explain().splitlines()[0]] += 1
    except Diverged:
        return "diverged"
    except ValueError as error:
        if "cannot be used: " not in str(error):  # which is how methods on errors refuse an energy
            raise
        return "refused"
    finally:
        torch.set_num_threads(threads)
    return "ok"


def available() -> list[str]:
    """The instruction sets that kernels were built for and this machine has, and "reference"."""
    from pyromancy import backends

    if not backends.available("native")[0]:
        return ["reference"]
    best = os.environ.get("FUZZ_BEST", torch.backends.cpu.get_cpu_capability().lower())
    order = ["default", "avx2", "avx512"]
    return [*order[: order.index(best) + 1 if best in order else 1][::-1], "reference"]
