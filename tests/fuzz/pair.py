"""A case, carried out by the package and by float64 autograd on formulas; they have to agree."""

import copy
import dataclasses
import io
import os
import pickle
from collections import Counter

import torch

import pyromancy as pyro

from .cases import METHODS, OWN_LAWS, Batch, Case, Do, Epoch, Learn, Run, Step
from .judge import Diverged, Judge
from .network import Network
from .reference import OPTIMIZERS, RULED, Reference, method_of

NEIGHBOURS = 6
STEPS = 3  # of a batch of EM
counts: Counter[str] = Counter()


class Pair:
    """The package's network, loop and EM, and the reference with its neighbours."""

    def __init__(self, case, neighbours=0):
        self.case, self.lr = case, case.lr
        self.dtype = torch.float32 if case.float32 else torch.float64
        rounding = torch.bfloat16 if case.medium else self.dtype
        self.judge = Judge(rounding)
        net = Network(case).to(self.dtype).double()  # weights that float32 has
        off = torch.finfo(rounding).eps
        self.references = [Reference(net, case, off * (i > 0), i) for i in range(neighbours + 1)]
        if neighbours and any(n.law == "laplace" for n in case.nodes):
            self.references.append(Reference(net, case, rest=self.judge.floor))
        self.reference = self.references[0]
        self.net = net.to(self.dtype)
        self.batch(Batch())
        self.wire()

    def loop_of(self, net):
        return pyro.InferenceLoop(net.energy, net.free(), **self.how())

    def how(self):
        """How E-steps move, as `InferenceLoop` and `EM` take it."""
        method, case = method_of(self.case, self.lr), self.case
        if method is not None:
            return {"method": method}
        return {"lr": self.lr, "momentum": case.momentum, "nesterov": case.method == "nesterov"}

    def wire(self):
        """A loop and optimizers of the weights that there are now."""
        self.loop = self.loop_of(self.net)
        self.optimize()

    def optimize(self):
        learned, self.em, self.optimizer = self.net.learned(), None, None
        for reference in self.references:
            reference.optimize()
        if learned:
            self.optimizer = OPTIMIZERS[self.case.optimizer](learned)
            self.em = pyro.EM(
                self.net.energy, self.net.free(), self.optimizer, start=self.net.start, steps=STEPS,
                incremental=self.incremental, **self.how(),
            )  # fmt: skip

    @property
    def incremental(self):
        return self.case.incremental if self.case.method in ("descent", "nesterov", "adam", "heun") else False

    @property
    def decides(self):
        """Whether steps are taken or not by energies that are compared, which rounding decides where they are equal."""
        return self.case.method in ("accelerated", "accelerated-states", "rated", "lbfgs")

    @property
    def followed(self):
        """Whether the reference can take the steps; of others no sample's energy may rise."""
        return self.case.method != "accelerated" and not (self.decides and self.case.float32)

    def agree(self, ours, theirs, what, floor=0.0):
        self.judge.agree(ours, theirs, what, floor)

    def compare(self, what):
        """All states, all weights and the energy."""
        floor = 1e-6 if self.decides else 0.0
        nets = [r.net for r in self.references]
        for i, (p, *qs) in enumerate(zip(self.net.states(), *(n.states() for n in nets), strict=True)):
            self.agree(p, qs, f"{what}: {'the input' if i == len(self.net.nodes) else f'state {i}'}", floor)
        for p, *qs in zip(self.net.named_parameters(), *(n.parameters() for n in nets), strict=True):
            if "value" not in p[0]:
                self.agree(p[1], qs, f"{what}: {p[0]}", floor)
        self.agree(self.loop.energy(), [r.energies() for r in self.references], f"{what}: energy()", floor)

    def batch(self, action):
        data = self.net.data(action.size, action.seed, action.layout)
        with torch.no_grad():
            self.net.start(*(t.to(self.dtype) for t in data))
        for r in self.references:
            r.start(data)
        self.dirty = False  # whether a method remembers what references do not

    def fresh(self, seed):
        """A new batch, where a method remembers another."""
        if self.dirty:
            self.batch(Batch(seed=seed))

    def run(self, action):
        self.fresh(action.steps)
        if action.alone:
            self.alone(action)
        before, noise = self.reference.energies(), self.noise(self.loop)
        trace = self.loop.run(action.steps, record=action.record)
        if not self.followed:
            self.descended("run", before)
        else:
            self.trace(action, trace, noise)
            self.compare("run")
        self.dirty = self.case.method not in RULED

    def trace(self, action, trace, noise):
        """The references' steps, with the energies of each where they are recorded."""
        recorded = action.record and self.case.method in RULED and self.case.method != "fixed"
        if not recorded:
            for r in self.references:
                r.run(action.steps, noise)
            return
        energies = [[r.energies().mean()] for r in self.references]
        for _ in range(action.steps):
            for r, of in zip(self.references, energies, strict=True):
                r.e_step()
                of.append(r.energies().mean())
        self.agree(trace.energies.sum(1), [torch.stack(of) for of in energies], "recorded energies")

    @staticmethod
    def noise(loop):
        generator = getattr(loop.method, "generator", None)
        return None if generator is None else generator.get_state()

    def descended(self, what, before):
        """No sample's energy is above what it was, but for methods with a rate; the references go on from there."""
        for r in self.references:
            r.follow(self.net)
        after = self.reference.energies()
        if not (after.isfinite().all() and before.isfinite().all()):
            raise Diverged
        if self.case.method == "rated":  # a rate may be too large
            return
        rise = (after - before) / before.abs().clamp(min=1)
        assert (rise <= self.judge.floor).all(), f"{what}: an energy has risen by {rise.max():.1e}"

    def alone(self, action):
        """The last sample's states, to the bit, when it is alone, on another number of threads."""
        if not self.is_own or self.case.method == "langevin":
            return
        many, one, threads = copy.deepcopy(self.net), copy.deepcopy(self.net), torch.get_num_threads()
        with torch.no_grad():
            for node in (one.below, *one.nodes):
                node.init(node.value[-1:].clone())
        results, ways = [], set()
        for net, on in ((many, threads), (one, 3 if threads == 1 else 1)):
            loop = self.loop_of(net)
            torch.set_num_threads(on)
            try:
                loop.run(action.steps, record=action.record)
            finally:
                torch.set_num_threads(threads)
            results.append([z.detach()[-1:] for z in net.free()])
            told = loop.explain()
            ways.add(told.count("W^T W chosen"))
        if len(ways) > 1:  # which the size of the batch decides
            return
        if "executor: chain" not in told or "stepwise" in told or not pyro.backends.available("native")[0]:
            return
        leaves, nodes = len(loop.program.leaves), loop._choice.executor.planner.nodes
        computed = [slot for n in nodes for slot in (n.prediction, n.theta) if type(slot) is int and slot >= leaves]
        if computed or any(n.rest for n in nodes):  # predictions, or parts of them, that PyTorch computes
            return
        counts["alone"] += 1
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b), "a sample's bits are others when it is alone"

    @property
    def is_own(self):
        """Whether no product is PyTorch's own, whose bits depend on the batch: what clamped states predict may be."""
        nodes = self.case.nodes
        edges = [e for n in nodes for e in n.edges if e.source < 0 or nodes[e.source].clamped]
        return all(e.kind in ("linear", "bias") and e.activation != "square" for e in edges)

    def learn(self, action):
        learned = self.net.learned()
        if self.optimizer is None or not any(p.requires_grad for p in learned):
            return
        if self.case.method == "fixed":  # whose gradients are at what the loop has run on
            self.fresh(0)
        self.optimizer.zero_grad()
        self.loop.backward(learned)
        for r in self.references:
            r.differentiate()
        names = [n for n, p in self.net.named_parameters() if any(p is q for q in learned)]
        for name, p, *qs in zip(names, learned, *(r.net.learned() for r in self.references), strict=True):
            ours, *theirs = (torch.zeros_like(q) if q.grad is None else q.grad for q in (p, *qs))
            self.agree(ours, theirs, f"gradient of {name}", 1e-6 if self.decides else 0.0)
            if (p.grad is None) != (qs[0].grad is None):  # none is 0, but to weight decay
                for q in (p, *qs):
                    q.grad = None
        if action.step:
            self.optimizer.step()
            for r in self.references:
                r.optimizer.step()
            self.compare("optimizer's step")
            self.forget()

    @property
    def trains(self):
        return self.em is not None and all(p.requires_grad for p in self.net.learned())

    def step(self, action):
        if not self.trains:
            return
        data, noise = self.net.data(action.size, action.seed, action.layout), self.noise(self.em.loop)
        self.em.step(*(t.to(self.dtype) for t in data))
        self.learned("EM's step", [data], noise)

    def epoch(self, action):
        if not self.trains:
            return
        data, noise = self.net.data(action.rows, action.seed), self.noise(self.em.loop)
        batches = sum(
            p.batches for p in self.em.epoch(*(t.to(self.dtype) for t in data), batch_size=action.size, shuffle=False)
        )
        parts = [*zip(*(t.split(action.size) for t in data), strict=True)]
        assert batches == len(parts), f"{batches} batches of an epoch, not {len(parts)}"
        self.learned("EM's epoch", parts, noise)

    def learned(self, what, batches, noise):
        """The references' batches of `EM`."""
        if self.followed and not (noise is not None and len(batches) > 1):
            for r in self.references:
                for data in batches:
                    r.batch(data, STEPS, self.incremental, noise)
            self.compare(what)
        else:
            for r in self.references:
                r.follow(self.net)
                r.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
            self.agree(self.loop.energy(), [r.energies() for r in self.references], f"{what}: energy()")
        self.dirty = True

    def forget(self):
        """Fixed predictions are those of weights and states as they were; what changes them begins a batch anew."""
        self.dirty = self.dirty or self.case.method == "fixed"

    def begin_anew(self):
        """A copy does not have what a method keeps within a batch, such as a velocity."""
        for r in self.references:
            r.begin()

    def every(self):
        return [self.net, *(r.net for r in self.references)]

    def do(self, action):
        self.forget()
        generator = torch.Generator().manual_seed(action.seed)
        name = sorted(self.net.parts)[action.seed % len(self.net.parts)] if self.net.parts else None
        match action.what:
            case "perturb":
                noise = [0.05 * torch.randn(p.shape, generator=generator).double() for p in self.net.learned()]
                with torch.no_grad():
                    for net in self.every():
                        for p, n in zip(net.learned(), noise, strict=True):
                            p.add_(n.to(p.dtype))
            case "replace" if name:
                for net in self.every():
                    net.parts[name] = torch.nn.Parameter(net.parts[name].detach() * 0.5)
                self.optimize()
                self.dirty |= self.case.method not in (
                    "descent",
                    "nesterov",
                )  # the energy is another, and memory begins anew
            case "freeze" if name:
                for net in self.every():
                    net.parts[name].requires_grad_(not net.parts[name].requires_grad)
            case "mode":
                for net in self.every():
                    net.train(not net.training)
            case "copy":
                self.begin_anew()
                self.net, self.loop, self.em, self.optimizer = copy.deepcopy(
                    (self.net, self.loop, self.em, self.optimizer)
                )
            case "pickle":
                self.begin_anew()
                self.net, self.loop, self.em, self.optimizer = pickle.loads(
                    pickle.dumps((self.net, self.loop, self.em, self.optimizer))
                )
            case "load":
                self.load(self.net.state_dict())
            case "resume" if self.em is not None:
                self.resume()
            case "move":  # to float32 and back: what rounding makes of weights and states is the same for all
                for net in self.every():
                    net.to(torch.float32).to(torch.float64)
                for r in self.references:  # and neighbours are none any more
                    r.round_weights()
                self.net.to(self.dtype)
                self.optimize()
                self.dirty = True
            case "threads":
                torch.set_num_threads((1, 2, 4)[action.seed % 3])
            case "rate" if self.loop.method.__class__.__name__ == "Descent" and self.case.method != "errors":
                self.lr = self.loop.lr = 0.03 + 0.01 * (action.seed % 3)
                if self.em is not None:
                    self.em.lr = self.lr
                for r in self.references:
                    r.lr = self.lr
                    if r.inner is not None:
                        r.inner.param_groups[0]["lr"] = self.lr
            case "method" if self.changes(METHODS[action.seed % len(METHODS)]):
                momentum = self.case.momentum or 0.5 * (METHODS[action.seed % len(METHODS)] == "nesterov")
                self.case = dataclasses.replace(
                    self.case, method=METHODS[action.seed % len(METHODS)], momentum=momentum
                )
                for r in self.references:
                    r.case = self.case
                self.wire()
                self.dirty = True
            case "state":
                with torch.no_grad():
                    for net in self.every():
                        for z in net.free():
                            z.clamp_(-0.5, 0.5)

    def changes(self, method):
        """Whether the network is one that the other method takes."""
        nodes, other = self.case.nodes, self.case.method
        circles = any(e.source >= t for t, n in enumerate(nodes) for e in n.edges)
        kinks = any(n.law == "laplace" for n in nodes)
        if method == other or (circles and method in ("errors", "accelerated", "fixed")):
            return False
        return not ((kinks or any(n.prior != "none" for n in nodes)) and method in ("errors", "accelerated", "lbfgs"))

    def load(self, state):
        """What `torch.save` writes, into a network whose weights are lost."""
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        with torch.no_grad():
            for p in self.net.learned():
                p.zero_()
        self.net.load_state_dict(torch.load(file, weights_only=True))

    def resume(self):
        """Another process: a new network, optimizer, loop and `EM`, which load what these were."""
        file = io.BytesIO()
        torch.save((self.net.state_dict(), self.em.state_dict()), file)
        file.seek(0)
        nets, told = torch.load(file, weights_only=True)
        net = Network(self.case).to(self.dtype).train(self.net.training)
        for p, q in zip(self.net.learned(), net.learned(), strict=True):
            q.requires_grad_(p.requires_grad)
        net.load_state_dict(nets)
        self.net = net
        kept = [r.optimizer for r in self.references]
        self.wire()
        for r, optimizer in zip(self.references, kept, strict=True):
            r.optimizer = optimizer
        self.em.load_state_dict(told)
        self.batch(Batch())


def check(case: Case) -> str:
    """Carry out a case; AssertionError tells what differs.

    Returns:
        "ok", "diverged", or "refused" where the method does not take such a network, or a free Laplace node is to rest
        after a sweep, but without kernels, which take states for their predictions, or where a prediction is in part
        computed by a law.
    """
    rests = case.sweep and any(node.law == "laplace" and not node.clamped for node in case.nodes)
    by_laws = any(node.law in OWN_LAWS and node.after == "square" for node in case.nodes)
    if rests and (by_laws or not pyro.backends.available("native")[0]):
        return "refused"
    try:
        return carried_out(case)
    except AssertionError:  # rounding, or not: only now neighbours are asked, as each takes as long as the reference
        return carried_out(case, NEIGHBOURS)


def carried_out(case: Case, neighbours: int = 0) -> str:
    """What `check` returns, or raises, with so many neighbours."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if case.medium else "highest")
    try:
        pair = Pair(case, neighbours)
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
        if pair.em is not None and pair.em.batches:
            counts["EM: " + pair.em.explain().splitlines()[0]] += 1
        counts["judged by neighbours"] += neighbours > 0
    except (Diverged, torch.linalg.LinAlgError):  # a covariance that learning has made singular has no inverse
        return "diverged"
    except ValueError as error:
        if "cannot be used: " not in str(error):  # which is how methods on errors refuse an energy
            raise
        return "refused"
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    return "ok"


def available() -> list[str]:
    """The instruction sets that kernels were built for and this machine has, and "reference"."""
    from pyromancy import backends

    if not backends.available("native")[0]:
        return ["reference"]
    best = os.environ.get("FUZZ_BEST", torch.backends.cpu.get_cpu_capability().lower())
    order = ["default", "avx2", "avx512"]
    return [*order[: order.index(best) + 1 if best in order else 1][::-1], "reference"]
