"""What a function depends on is watched, or said to be more than can be."""

import dataclasses
import enum
import functools
import importlib
import itertools
import math
import random
import time

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import pyromancy as pyro
from pyromancy import native
from pyromancy.capture import capture
from pyromancy.capture.watch import PROVEN_AFTER, CannotWatch, Watch
from pyromancy.nodes import StandardGaussianNode

pytestmark = pytest.mark.skipif(native.MODULE is None, reason="there is no compiled module to compare with")

FACTOR = 2.0
SCALES = {"a": [1.0, 2.0]}


@dataclasses.dataclass
class Config:
    factor: float = 2.0
    kind: str = "warm"


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.scale = 1.0

    def forward(self, x):
        return self.scale * self.linear(torch.tanh(x))


class Net(nn.Module):
    """As people write them; `energy` depends on everything here but `log` and `unused`."""

    offset = 0.5

    def __init__(self):
        super().__init__()
        self.source, self.node = StandardGaussianNode(4), StandardGaussianNode(3)
        self.layers = nn.ModuleList([Layer()])
        self.unused = nn.Linear(2, 2)
        self.config = Config()
        self.steps = [1, 2]
        self.log = []
        self.register_buffer("mask", torch.ones(3))
        self.f = functools.partial(torch.mul, other=2.0)
        self.source.init(torch.randn(2, 4))
        self.node.init(torch.randn(2, 3))

    @property
    def half(self):
        return self.config.factor / math.sqrt(4)

    @staticmethod
    def together(energies):
        return sum(energies)

    def energy(self):
        energies = []
        for layer in self.layers:
            prediction = self.f(layer(self.source.value)) * self.mask + self.offset
            if self.config.kind == "warm" and len(self.steps) == 2 and self.training:
                prediction = F.relu(prediction) * FACTOR * SCALES["a"][0]
            energies.append(self.node.energy(prediction) * self.half)
        return self.together(energies)


class Silent(nn.Module):
    """Not of the kinds that are known, as its forward may do anything."""

    def forward(self, x):
        return x


def enclosed(x):
    count = 1.0

    def energy(scale=2.0, *, shift=1.0):
        return (count * scale * x + shift).square().sum(1)

    def count_on():
        nonlocal count
        count += 1

    return energy, count_on


def hooked(module, *_):
    pass


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def set_item(container, key, value):
    container[key] = value


CHANGES = {
    "an attribute": lambda n: setattr(n.layers[0], "scale", 3.0),
    "an attribute of an attribute": lambda n: setattr(n.config, "factor", 3.0),
    "an attribute of text": lambda n: setattr(n.config, "kind", "cold"),
    "a list": lambda n: n.steps.append(3),
    "an item of a list": lambda n: set_item(n.steps, 0, 5),
    "another list": lambda n: setattr(n, "steps", [3, 4, 5]),
    "train and eval": lambda n: n.eval(),
    "train and eval of a part": lambda n: n.layers[0].linear.eval(),
    "a parameter": lambda n: setattr(n.layers[0].linear, "weight", nn.Parameter(torch.zeros(3, 4))),
    "a buffer": lambda n: setattr(n, "mask", torch.zeros(3)),
    "a module": lambda n: set_item(n.layers, 0, Layer()),
    "one module more": lambda n: n.layers.append(Layer()),
    "a module where there was none": lambda n: setattr(n.layers[0], "more", nn.Tanh()),
    "a node": lambda n: setattr(n, "node", StandardGaussianNode(3)),
    "a method of the instance": lambda n: setattr(n.layers[0], "forward", lambda x: torch.zeros(2, 3)),
    "a method that hides the class's": lambda n: setattr(n, "together", sum),
    "a forward hook": lambda n: n.layers[0].register_forward_hook(hooked),
    "a forward hook on a layer of PyTorch's": lambda n: n.layers[0].linear.register_forward_hook(hooked),
    "a frozen parameter": lambda n: n.layers[0].linear.weight.requires_grad_(False),
    "a state of another form": lambda n: n.node.init(torch.zeros(5, 3)),
    "a partial function": lambda n: setattr(n, "f", functools.partial(torch.mul, other=3.0)),
    "the class of an instance": lambda n: setattr(n, "__class__", type("Other", (Net,), {"offset": 2.0})),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_notices(net, change):
    watch = Watch(net.energy, ())
    net.energy()
    assert watch.holds()
    change(net)
    assert not watch.holds()


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (__name__, "FACTOR", 3.0),  (f"{__name__}.Net", "offset", 1.0),
        (f"{__name__}.Net", "together", staticmethod(max)), (f"{__name__}.Layer", "forward", lambda s, x: x),
        ("torch", "tanh", torch.sin), ("torch.nn.functional", "relu", torch.sin),
        ("torch.nn.functional", "linear", hooked),
        ("torch.nn.Linear", "forward", hooked),
        ("math", "sqrt", math.exp), ("builtins", "sum", max), ("torch.nn.Module", "__call__", hooked),
        ("pyromancy.nodes.StandardGaussianNode", "energy", hooked), (__name__, "sum", max),
    ],
)  # fmt: skip
def test_notices_what_lies_outside(net, monkeypatch, where, name, value):
    watch = Watch(net.energy, ())
    assert watch.holds()
    owner = globals() if where == __name__ else None
    if owner is not None:
        monkeypatch.setitem(owner, name, value)
    elif where.startswith(__name__):
        monkeypatch.setattr(globals()[where.rpartition(".")[2]], name, value)
    else:
        monkeypatch.setattr(f"{where}.{name}", value)
    assert not watch.holds()
    monkeypatch.undo()


def test_notices_a_container_that_a_global_holds(net):
    watch = Watch(net.energy, ())
    SCALES["a"].append(1.0)
    try:
        assert not watch.holds()
    finally:
        SCALES["a"].pop()


def test_notices_hooks_on_all_modules(net):
    watch = Watch(net.energy, ())
    handle = nn.modules.module.register_module_forward_hook(hooked)
    try:
        assert not watch.holds()
    finally:
        handle.remove()
    assert watch.holds()


AROUND = {
    "a variable around it": lambda energy, count_on: count_on(),
    "a default": lambda energy, count_on: setattr(energy, "__defaults__", (3.0,)),
    "a default by name": lambda energy, count_on: set_item(energy.__kwdefaults__, "shift", 3.0),
    "its code": lambda energy, count_on: setattr(energy, "__code__", enclosed(X)[0].__code__.replace(co_name="other")),
}


@pytest.mark.parametrize("change", AROUND.values(), ids=AROUND)
def test_notices_changes_of_a_function(change):
    energy, count_on = enclosed(torch.ones(2, 3))
    watch = Watch(energy, ())
    assert watch.holds()
    change(energy, count_on)
    assert not watch.holds()


class Layers(nn.Sequential):
    """No code of its own: that of PyTorch's class reads what it will."""


class Slope(nn.LeakyReLU):
    pass


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x):
        return self._modules["a"](x)


def scaled(x):
    return scaled.factor * x


scaled.factor = 1.0
PARTIAL = functools.partial(torch.mul, other=2.0)


def annotated(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


@annotated
@torch.no_grad()
def decorated(x):
    return FACTOR * x


class Own(StandardGaussianNode):
    """What the base's code calls may be a subclass's."""

    def __init__(self):
        super().__init__(3)
        self.init(torch.ones(2, 3))

    def _state(self, method):
        return super()._state(method) * SCALES["a"][1]

    def forward(self, x):
        return self.energy(x)[:, None]


class Tied(nn.Linear):
    @property
    def weight(self):
        return self.matrix * SCALES["a"][1]

    @weight.setter
    def weight(self, value):
        self.matrix = value


class Equal:
    def __init__(self, factor):
        self.factor = factor

    def __eq__(self, other):
        return self.factor == other.factor

    __hash__ = None


EQUAL, OTHER = Equal(1.0), Equal(1.0)


def compared(x):
    return x if EQUAL == OTHER else -x


class Told:
    def __repr__(self):
        return "a" * len(SCALES["a"])


TOLD = Told()


def told(x):
    return len(str(TOLD)) * x


def tried(x):
    try:
        return torch.factor * x
    except AttributeError:
        return x


PATCHED = Silent()
PATCHED.forward = lambda x: x


REACHED = {
    "a method of a node that its base calls": (Own(), lambda m: set_item(SCALES["a"], 1, 3.0)),
    "a property that a layer reads": (Tied(3, 3), lambda m: set_item(SCALES["a"], 1, 4.0)),
    "the fields of objects that are compared": (compared, lambda f: setattr(EQUAL, "factor", 2.0)),
    "a forward that was set before": (PATCHED, lambda m: setattr(m, "forward", lambda x: 2 * x)),
    "another dictionary of an object": (
        lambda x: SCALE.factor * x,
        lambda f: setattr(SCALE, "__dict__", {"factor": 3.0}),
    ),
    "an attribute of a tensor": (lambda x: x, lambda f: setattr(X, "factor", 2.0)),
    "a layer of a subclass of Sequential": (Layers(nn.Linear(3, 3), nn.Tanh()), lambda m: set_item(m, 1, nn.ReLU())),
    "an option of a subclass of a layer": (Slope(0.1), lambda m: setattr(m, "negative_slope", 0.3)),
    "a module by name": (ByName(), lambda m: setattr(m, "a", nn.Linear(3, 3))),
    "an object by its text": (told, lambda f: SCALES["a"].append(3.0)),
    "what PyTorch lacks": (tried, lambda f: setattr(torch, "factor", 2.0)),
    "an attribute of a function": (scaled, lambda f: setattr(f, "factor", 2.0)),
    "a keyword of a partial function": (PARTIAL, lambda f: set_item(f.keywords, "other", 3.0)),
    "a decorated function's global": (
        decorated,
        lambda f: set_item(f.__wrapped__.__wrapped__.__globals__, "FACTOR", 3),
    ),
}


@pytest.mark.parametrize("name", REACHED)
def test_notices_what_is_reached_through(name):
    function, change = REACHED[name]
    watch = Watch(lambda: function(X).sum(1), ())
    assert watch.holds()
    try:
        change(function)
        assert not watch.holds()
    finally:
        globals()["FACTOR"] = 2.0
        vars(X).clear()
        vars(torch).pop("factor", None)


UNCHANGED = {
    "what tensors hold": lambda n: n.layers[0].linear.weight.data.zero_(),
    "a state of the same form": lambda n: n.node.init(torch.zeros(2, 3)),
    "what it does not name": lambda n: n.log.append(1),
    "a module that it does not name": lambda n: setattr(n, "unused", nn.Linear(3, 3)),
}


@pytest.mark.parametrize("change", UNCHANGED.values(), ids=UNCHANGED)
def test_holds_where_nothing_else_would_be_captured(net, change):
    watch = Watch(net.energy, ())
    change(net)
    assert watch.holds()


class Warm(Config):
    pass


class Cold(Config):
    pass


KINDS = {
    "the object's class": lambda: setattr(SCALE, "__class__", Cold),
    "the class's name": lambda: set_item(globals(), "Warm", Cold),
    "the function": lambda: set_item(globals(), "isinstance", lambda thing, kind: True),
}


@pytest.mark.parametrize("change", KINDS.values(), ids=KINDS)
def test_classes_that_isinstance_takes_are_not_made(change):
    """Whose code has effects, on the objects that it makes: nothing of it runs."""
    warm = Warm
    watch = Watch(lambda: X.sum(1) * 2 if isinstance(SCALE, Warm) else X.sum(1), ())
    assert watch.holds()
    try:
        change()
        assert not watch.holds()
    finally:
        SCALE.__class__, globals()["Warm"] = Config, warm
        globals().pop("isinstance", None)


class Storing(Net):
    def energy(self):
        self.last = super().energy()
        return self.last


class Slotted:
    __slots__ = ("factor",)

    def __init__(self):
        self.factor = 2.0


COUNTER = itertools.count()
SOURCE = random.Random(0)
SLOTTED = Slotted()
SCALE = Config()
X = torch.ones(2, 3)
SILENT = Silent()
GRU = nn.GRU(3, 3)
MEMBERS = {1, 2}


def imports():
    import math as m

    return X.sum(1) * m.pi


def sets_an_item():
    SCALES["b"] = [1.0]
    return X.sum(1)


def sets_a_global():
    global FACTOR
    FACTOR = 2.0
    return X.sum(1)


def zeroes_gradients(net):
    def energy():
        net.zero_grad()
        return net.energy()

    return energy


class Phase(enum.Enum):
    A = 1

    @property
    def weight(self):
        return SCALES["a"][0]


class Meta(type):
    def __eq__(cls, other):
        return cls is other


class Strange(metaclass=Meta):
    pass


class Empty:
    __slots__ = ()


SENTINEL, EMPTY, STRANGE = object(), Empty(), Strange()
MANY = [float(i) for i in range(20_000)]


def matches():
    match SCALE:
        case Config(factor=2.0):
            return X.sum(1)
    return -X.sum(1)


def makes(thing, kind):
    return isinstance(thing, kind) and kind().factor


TOO_MUCH = {
    "an object that it makes": lambda: X.sum(1) * Config().factor,
    "an object that a function makes of its last argument": lambda: X.sum(1) * makes(SCALE, Config),
    "an object that it makes and looks at": lambda: X.sum(1) if isinstance(Config(), Config) else X,
    "an enumeration": lambda: X.sum(1) * Phase.A.weight,
    "a bare object": lambda: X.sum(1) if SENTINEL is not None else X,
    "an object without a dictionary": lambda: X.sum(1) if EMPTY else X,
    "a class that cannot be hashed": lambda: X.sum(1) if STRANGE else X,
    "text made of objects": lambda: X.sum(1) * len(f"{SCALE}"),
    "text made of attributes": lambda: X.sum(1) * len("{.factor}".format(SCALE)),  # noqa: UP032
    "text made the old way": lambda: X.sum(1) * len("%s" % SCALE),  # noqa: UP031
    "a pattern": matches,
    "an attribute by a special method": lambda: SILENT.__getattr__("training") * X.sum(1),
    "keywords of an object": lambda: X.sum(**SCALES),
    "the name of a class": lambda: X.sum(1) * len(Config.__name__),
    "more than a dry run takes": lambda: X.sum(1) * MANY[0],
    "the clock": lambda: X.sum(1) * time.time(),
    "random numbers": lambda: X.sum(1) * random.random(),
    "a source of random numbers": lambda: X.sum(1) * SOURCE.random(),
    "an iterator": lambda: X.sum(1) * next(COUNTER),
    "what PyTorch is set to": lambda: X.sum(1) * torch.is_grad_enabled(),
    "slots": lambda: X.sum(1) * SLOTTED.factor,
    "an attribute by name": lambda: getattr(X, "sum")(1),  # noqa: B009
    "an import": imports,
    "an item that it sets": sets_an_item,
    "a global that it sets": sets_a_global,
    "output": lambda: print("x") or X.sum(1),
    "a set": lambda: X.sum(1) * len(MEMBERS),
    "the dictionary of an object": lambda: X.sum(1) * SCALE.__dict__["factor"],
    "a module of PyTorch's that is not known": lambda: GRU(X)[0].sum(1),
}


@pytest.mark.parametrize("function", TOO_MUCH.values(), ids=TOO_MUCH)
def test_says_what_cannot_be_watched(function):
    with pytest.raises(CannotWatch):
        Watch(function, ())


def reads_a_gradient(net):
    return lambda: net.energy() if net.mask.grad is None else X.sum(1)


@pytest.mark.parametrize("make", [lambda: Storing().energy, lambda: reads_a_gradient(Net())], ids=["stores", "reads"])
def test_does_not_watch_stored_tensors_nor_gradients(make):
    with pytest.raises(CannotWatch):
        Watch(make(), ())


def test_what_zeroes_gradients_is_run_where_there_are_some(net):
    watch = Watch(zeroes_gradients(net), ())
    assert watch.holds()
    net.unused.weight.grad = torch.ones_like(net.unused.weight)
    assert not watch.holds()
    net.zero_grad()
    assert watch.holds()


def test_a_user_s_module_without_state_is_watched():
    watch = Watch(lambda: SILENT(X).sum(1), ())
    assert watch.holds()
    SILENT.forward = torch.zeros_like
    try:
        assert not watch.holds()
    finally:
        del SILENT.forward


def counted(monkeypatch):
    runs, dry_run = [], capture.dry_run

    def count(*args):
        runs.append(1)
        return dry_run(*args)

    monkeypatch.setattr(capture, "dry_run", count)
    return runs


def one_step(net: Net) -> Tensor:
    """By autograd, from the state as it is."""
    z = net.node.value
    (gradient,) = torch.autograd.grad(net.energy().sum(), z)
    return z.detach() - 0.1 * gradient


# what a loop refuses, or what makes its state another
ENDING = ("a node", "a state of another form", "the class of an instance")
FOLLOWED = {name: change for name, change in CHANGES.items() if name not in ENDING}


@pytest.mark.parametrize("change", FOLLOWED.values(), ids=FOLLOWED)
def test_a_loop_follows_every_change_that_comes_after_runs_without_a_dry_run(net, monkeypatch, change):
    loop = pyro.InferenceLoop(net.energy, [net.node.value], lr=0.1)
    runs = counted(monkeypatch)
    for _ in range(10):
        loop.run(1)
    before = len(runs)
    loop.run(1)
    assert len(runs) == before  # it is watched
    for step in (change, lambda n: None):
        step(net)
        expected = one_step(net)
        loop.run(1)
        torch.testing.assert_close(net.node.value.detach(), expected)


@pytest.mark.slow
def test_watching_is_put_off_where_something_changes_at_every_run(net, monkeypatch):
    loop = pyro.InferenceLoop(net.energy, [net.node.value], lr=0.1)
    taken = []
    made = Watch.__init__
    monkeypatch.setattr(Watch, "__init__", lambda self, *args: (taken.append(1), made(self, *args))[1])
    for i in range(200):
        net.layers[0].scale = float(i)
        expected = one_step(net)
        loop.run(1)
        torch.testing.assert_close(net.node.value.detach(), expected)
    assert len(taken) < 10


def test_stored_tensors_are_those_of_the_last_run():
    net = Storing()
    loop = pyro.InferenceLoop(net.energy, [net.node.value], lr=0.1)
    for _ in range(20):
        loop.run(1)
        torch.testing.assert_close(net.last.detach(), Net.energy(net).detach())


def test_nothing_is_kept_alive_by_what_is_watched():
    import gc
    import weakref

    net = Net()
    net.loop = pyro.InferenceLoop(net.energy, [net.node.value], lr=0.1)
    for _ in range(10):
        net.loop.run(1)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def of_layout(net):
    return net.energy() if net.node.value.is_contiguous() else net.energy() * 2


def of_gradients(net):
    return net.energy() if net.layers[0].linear.weight.requires_grad else net.energy() * 2


def of_a_stranger(net):
    return net.node.energy(SILENT(X)) * SLOTTED.factor


def of_text(net):
    return net.energy() if f"{net.steps[0]}" else net.energy() * 2


def of_a_clock(net):
    return net.energy() * (1.0 + 0.0 * time.perf_counter())


def of_what_may_be_raised(net):
    if len(net.steps) > 100:
        raise NotImplementedError
    return net.energy()


REASONS = {
    of_a_clock: "time.perf_counter, a compiled function of which nothing is known",
    of_what_may_be_raised: "",
    of_text: "of_text formats text, in an f-string: name beforehand what it looks up",
    of_layout: "it asks a tensor for is_contiguous, which is not looked at",
    of_gradients: "it asks a tensor for requires_grad, which is not looked at",
    of_a_stranger: "Slotted, which may hold more than can be looked at",
    Net.energy: "",
}


@pytest.mark.parametrize("energy", REASONS, ids=lambda energy: energy.__name__)
def test_explain_says_why_an_energy_goes_on_being_run_dry(net, energy):
    loop = pyro.InferenceLoop(lambda: energy(net), [net.node.value], lr=0.1)
    for _ in range(6):
        loop.run(1)
    assert [line for line in loop.explain().splitlines() if "run dry" in line] == (
        [f"  run dry before every run: {REASONS[energy]}"] if REASONS[energy] else []
    )


class More(Net):
    """One that is made of another, as it makes things when it is made itself."""

    def energy(self):
        return super().energy() + self.node.value.square().sum(1)


class Maker(More):
    def energy(self):
        return super().energy() * (1 if __class__ else 2)


def test_what_super_asks_for_is_watched_and_made_by_nobody(monkeypatch):
    net = More()
    net.source.init(torch.randn(5, 4)), net.node.init(torch.randn(5, 3))
    loop = pyro.InferenceLoop(net.energy, [net.node.value], lr=0.1)
    for _ in range(6):
        loop.run(1)
    assert "run dry" not in loop.explain()
    before = loop.energy()
    monkeypatch.setattr(Net, "energy", lambda self: 0.0 * self.node.value.sum(1))
    loop.run(0)
    assert not torch.equal(loop.energy(), before)
    torch.testing.assert_close(loop.energy(), net.node.value.detach().square().sum(1))


def test_a_class_that_its_own_code_takes_may_be_made():
    net = Maker()
    net.source.init(torch.randn(5, 4)), net.node.init(torch.randn(5, 3))
    loop = pyro.InferenceLoop(net.energy, [net.node.value], lr=0.1)
    for _ in range(6):
        loop.run(1)
    assert "run dry before every run: __init__ has effects" in loop.explain()


def test_explain_says_that_an_energy_stores_what_it_computes():
    net = Storing()
    loop = pyro.InferenceLoop(net.energy, [net.node.value], lr=0.1)
    for _ in range(6):
        loop.run(1)
    assert "run dry before every run: it stores what it computes, such as add of node.value" in loop.explain()


def test_explain_says_that_something_changes_which_an_energy_may_go_by(net):
    loop = pyro.InferenceLoop(net.energy, [net.node.value], lr=0.1)
    for i in range(60):
        net.steps[0] = i
        loop.run(1)
    assert "run dry before every run: what it can reach has changed meanwhile: an attribute, an item" in loop.explain()
    for _ in range(40):
        loop.run(1)
    assert "run dry" not in loop.explain()


def test_explain_says_that_energies_take_turns(net):
    loop = pyro.InferenceLoop(net.energy, [net.node.value], lr=0.1)
    for batch in (2, 3) * 10:
        net.source.init(torch.randn(batch, 4))
        net.node.init(torch.randn(batch, 3))
        for _ in range(2):
            loop.run(1)
    assert "  run dry before every run: it has not been the same 5 times in a row" in loop.explain()
    for _ in range(5):
        loop.run(1)
    assert "run dry" not in loop.explain()


def test_classes_that_were_patched_before_are_not_watched(monkeypatch, net):
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: FACTOR * x)
    with pytest.raises(CannotWatch, match="Linear, which has been patched"):
        Watch(net.energy, ())


def test_what_pytorch_s_compiler_puts_into_modules_is_no_obstacle(net):
    importlib.import_module("torch._dynamo")
    assert Watch(net.energy, ()).holds()


IMAGE, VECTORS, ROWS = (2, 4, 6, 6), (2, 6), (2, 4, 6)
LAYERS = [
    (nn.AdaptiveMaxPool2d(2), IMAGE), (nn.AdaptiveAvgPool2d(3), IMAGE), (nn.AvgPool2d(2), IMAGE),
    (nn.MaxPool2d(2), IMAGE), (nn.AvgPool1d(2), ROWS), (nn.MaxPool1d(2), ROWS),
    (nn.AdaptiveAvgPool1d(2), ROWS), (nn.AdaptiveMaxPool1d(2), ROWS),
    (nn.GroupNorm(2, 4), IMAGE), (nn.RMSNorm(6), VECTORS), (nn.LayerNorm(6), VECTORS), (nn.Softmax(1), VECTORS),
    (nn.LogSoftmax(1), VECTORS), (nn.Unflatten(1, (2, 3)), VECTORS), (nn.Mish(), VECTORS), (nn.Hardswish(), VECTORS),
    (nn.Softsign(), VECTORS), (nn.CELU(), VECTORS), (nn.GLU(), VECTORS), (nn.Tanhshrink(), VECTORS),
    (nn.PixelShuffle(2), IMAGE), (nn.ZeroPad2d(1), IMAGE), (nn.Upsample(scale_factor=2), IMAGE),
    (nn.Conv1d(4, 2, 3), ROWS), (nn.ConvTranspose1d(4, 2, 3), ROWS), (nn.ConvTranspose2d(4, 2, 3), IMAGE),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "")
def test_layers_are_watched(layer, shape):
    """Who uses them need not have an energy run dry before every run, which is a sweep."""
    layer = layer.double()
    z = nn.Parameter(torch.rand(shape, dtype=torch.float64))
    y = torch.zeros_like(layer(z))
    loop = pyro.InferenceLoop(lambda: (y - layer(z)).square().flatten(1).sum(1), [z], lr=0.01)
    for _ in range(PROVEN_AFTER + 2):
        loop.run(1)
    assert "dry" not in loop.explain()
    assert loop.program.guard.watch is not None
    if isinstance(layer, nn.AdaptiveMaxPool2d):  # and a change of what the layer holds is noticed
        layer.output_size = 3
        y = torch.zeros_like(layer(z))
        before = z.detach().clone()
        loop.run(1)
        gradient = torch.autograd.grad((y - layer(before.requires_grad_())).square().sum(), before)[0]
        torch.testing.assert_close(z.detach(), before.detach() - 0.01 * gradient)
