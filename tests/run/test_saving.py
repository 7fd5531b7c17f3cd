"""A training that was saved and went on elsewhere comes to the same bits as one that was never stopped."""

import copy
import functools
import io
import pickle

import pytest
import torch
from safetensors.torch import load_model, save_model

import forks
import processes
import resumed
from pyromancy import EM, InferenceLoop, methods, networks


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory):
    """The folder where another process has left what every training came to."""
    folder = tmp_path_factory.mktemp("saved")
    for kind in resumed.KINDS:
        training = resumed.Training(kind)
        training.stop()
        torch.save(training.state(), folder / f"{kind}.pt")
    forks.python(resumed.__file__, folder, **processes.AS_HERE)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", resumed.KINDS)
def test_another_process_goes_on_to_the_same_bits(kind, gone_on):
    state = torch.load(gone_on / f"{kind}.pt", weights_only=True)
    left = state["em"]["order"]
    assert left is None if kind == "loader" else len(left) == 60 - 8 * resumed.STOP[1]
    whole = resumed.Training(kind)
    begun = [t.clone() for t in whole.net.m_params()]
    whole.run()
    expected = whole.result()
    assert expected[-1] == resumed.EPOCHS * 8
    assert not any(torch.equal(a, b) for a, b in zip(begun, expected, strict=False))
    for ours, theirs in zip(torch.load(gone_on / f"{kind}.after.pt"), expected, strict=True):
        assert torch.equal(ours, theirs)


def em_of(net=None, **options):
    net = net or networks.mlp([8, 5, 3])
    given = {"steps": 2} | ({} if "method" in options else {"lr": 0.1}) | options
    return EM(net.energy, net.e_params(), torch.optim.SGD(net.m_params(), 0.1), start=net.start, **given)


@pytest.mark.parametrize(
    ("of", "into", "message"),
    [
        ({}, {"method": methods.Accelerated()}, "method must be that of this EM, Accelerated on errors, got 'Descent"),
        ({"method": methods.Heun(0.1)}, {}, "method must be that of this EM, Descent on states, got 'Heun"),
        ({"method": methods.Descent(0.1, max_norm=1.0)}, {}, "lr must be a number, got None"),
        (
            {"method": methods.Langevin(0.1, generator=torch.Generator())},
            {"method": methods.Langevin(0.1)},
            "noise must be of a method's generator .* it has none",
        ),
    ],
    ids=["a method", "a rate", "no rate", "noise"],
)
def test_what_is_of_another_training_is_refused(of, into, message):
    em = em_of(**into)
    em.batches = 7
    before = em.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        em.load_state_dict(em_of(**of).state_dict() | {"batches": 3})
    assert em.state_dict() == before


OPTIONS = em_of(steps=5, momentum=0.5).state_dict()["options"]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad])
def test_a_state_of_other_widths_is_refused(kind):
    """By the parameter's name, with both shapes; nothing is loaded."""
    trained, other = networks.mlp([8, 7, 3]), networks.mlp([8, 5, 3])
    ems = []
    for net in (trained, other):
        ems.append(EM(net.energy, net.e_params(), kind(net.m_params(), 0.1), start=net.start, steps=2, lr=0.1))
        ems[-1].step(torch.rand(4, 8), torch.rand(4, 3))
    before = copy.deepcopy(ems[1].state_dict())
    name = "exp_avg" if kind is torch.optim.Adam else "sum"
    told = rf"must hold averages of its parameters' shapes, got {name} \[7, 8\] for edges.0.weight \[5, 8\]"
    with pytest.raises(ValueError, match=told):
        ems[1].load_state_dict(ems[0].state_dict())
    after = ems[1].state_dict()
    assert all(map(same_state, after["optimizer"]["state"].values(), before["optimizer"]["state"].values()))
    assert {**after, "optimizer": 0} == {**before, "optimizer": 0}
    ems[1].load_state_dict(before)
    ems[1].optimizer.load_state_dict(ems[0].optimizer.state_dict())  # which PyTorch takes
    weights = [p.clone() for p in other.m_params()]
    with pytest.raises(ValueError, match=told):
        ems[1].step(torch.rand(4, 8), torch.rand(4, 3))
    assert all(map(torch.equal, other.m_params(), weights))


class Rows(torch.optim.Optimizer):
    """Momentum of the means of rows: what it holds is of another shape than a parameter."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = p.grad.mean(-1, keepdim=True)
                held = self.state[p]
                held["exp_avg"] = mean if not held else 0.9 * held["exp_avg"] + 0.1 * mean
                p.sub_(group["lr"] * held["exp_avg"])


def test_an_optimizer_of_ones_own_may_hold_averages_of_any_shape():
    trained, other = networks.mlp([8, 5, 3]), networks.mlp([8, 5, 3])
    other.load_state_dict(trained.state_dict())
    ours, theirs = (
        EM(net.energy, net.e_params(), Rows(net.m_params(), 0.1), start=net.start, steps=2, lr=0.1)
        for net in (trained, other)
    )
    batches = [(torch.rand(4, 8), torch.rand(4, 3)) for _ in range(3)]
    for batch in batches:
        ours.step(*batch)
        theirs.step(*batch)
        theirs.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert all(held["exp_avg"].shape == (*p.shape[:-1], 1) for p, held in theirs.optimizer.state.items())
    assert all(map(torch.equal, trained.m_params(), other.m_params()))


def same_state(ours, theirs):
    return all(torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(theirs[name])) for name in theirs)


@pytest.mark.parametrize(
    ("entry", "value", "error", "message"),
    [
        ("batches", -1, ValueError, "batches must be how many are done, got -1"),
        ("batches", True, ValueError, "batches must be how many are done, got True"),
        ("noise", "x", ValueError, "noise must be None or what torch.Generator.get_state gives, got str"),
        ("options", {"steps": 3}, ValueError, "options must be those of state_dict, steps, tol"),
        ("options", OPTIONS | {"steps": -3}, ValueError, "steps must not be negative, got -3"),
        ("options", OPTIONS | {"lr": float("nan")}, ValueError, "lr must be finite and not negative, got nan"),
        ("optimizer", {"state": {}, "param_groups": []}, ValueError, "different number of parameter groups"),
    ],
    ids=["negative", "bool", "noise", "names", "steps", "rate", "optimizer"],
)
def test_after_a_refusal_nothing_is_loaded(entry, value, error, message):
    em = em_of()
    before = copy.deepcopy(em.state_dict())
    state = em_of(steps=5, lr=0.3, momentum=0.5).state_dict() | {"batches": 9}
    state["optimizer"]["param_groups"][0]["lr"] = 7.0
    state[entry] = value
    with pytest.raises(error, match=message):
        em.load_state_dict(state)
    assert em.state_dict() == before


def restored(em, how):
    if how == "deepcopy":
        return copy.deepcopy(em)
    if how == "pickle":
        return pickle.loads(pickle.dumps(em))
    file = io.BytesIO()
    torch.save(em, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_of_everything_goes_on_to_the_same_bits(how):
    """Network, optimizer, scheduler, generator and `EM` as one object, in the middle of an epoch."""
    training = resumed.Training("adam")
    training.stop()
    twin = restored(training, how)
    results = []
    for each in (training, twin):
        each.em.load_state_dict(each.em.state_dict())
        each.run()
        torch.manual_seed(0)
        results.append(each.result())
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


FUNCTIONS = {
    "energy": lambda net, opt: EM(lambda: net.energy(), net.e_params(), opt, start=net.start, steps=1, lr=0.1),
    "start": lambda net, opt: EM(
        net.energy, net.e_params(), opt, start=functools.partial(lambda x, y: net.start(x, y)), steps=1, lr=0.1
    ),
    "loop": lambda net, opt: InferenceLoop(lambda: net.energy(), net.e_params(), lr=0.1),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_calls_a_function_is_not_copied(kind):
    """The copy would call the same function, which knows the network that was copied."""
    net = networks.mlp([6, 5, 3])
    made = FUNCTIONS[kind](net, torch.optim.SGD(net.m_params(), 0.1))
    name, whose = ("energy", "InferenceLoop") if kind == "loop" else (kind, "EM")
    told = f"{name} must be a method, or .* got the function .*<lambda>, which knows net: .* make another {whose}"
    with pytest.raises(TypeError, match=told):
        copy.deepcopy({"net": net, "made": made})


def test_a_copied_loop_moves_the_states_of_its_own_network():
    net, x, y = networks.mlp([6, 5, 3]), torch.rand(4, 6), torch.rand(4, 3)
    loop = InferenceLoop(functools.partial(net.energy), net.e_params(), lr=0.1)
    net.start(x, y)
    loop.run(1)
    before = net.nodes[1].value.clone()
    twin, other = copy.deepcopy((loop, net))
    twin.run(1)
    assert torch.equal(net.nodes[1].value, before)
    loop.run(1)
    assert torch.equal(net.nodes[1].value, other.nodes[1].value)


SCALE, NETWORK = 2.0, networks.mlp([6, 5, 3])


def energy_of(net):
    return scaled(net.energy())


def scaled(energy):
    return SCALE * energy.mul(0.5)


def of_a_global(net):
    return scaled(net.energy()) + NETWORK.energy()


def by_another(net):
    return of_a_global(net)


def with_a_default(net, other=NETWORK):
    return net.energy()


def start_of(net, x, y):
    net.start(x, y)


def test_functions_of_their_arguments_are_copied_with_them():
    """As `functools.partial` gives a network to them: the copy learns by itself, what the original would have."""
    net, x, y = networks.mlp([6, 5, 3]), torch.rand(4, 6), torch.rand(4, 3)
    energy, start = functools.partial(energy_of, net), functools.partial(start_of, net)
    optimizer = torch.optim.Adam(net.m_params(), 0.1)
    em = EM(energy, net.e_params(), optimizer, start=start, steps=3, lr=0.1)
    em.step(x, y)
    before = [p.clone() for p in net.m_params()]
    twin, other = copy.deepcopy((em, net))
    twin.step(x, y)
    assert all(map(torch.equal, net.m_params(), before))
    em.step(x, y)
    assert all(map(torch.equal, net.m_params(), other.m_params()))
    assert not any(map(torch.equal, net.m_params(), before))


@pytest.mark.parametrize(
    ("function", "known"),
    [(of_a_global, "NETWORK"), (by_another, "NETWORK by of_a_global"), (with_a_default, "a default of with_a_default")],
    ids=["a global", "another function", "a default"],
)
def test_functions_that_know_another_network_are_not_copied(function, known):
    net = networks.mlp([6, 5, 3])
    loop = InferenceLoop(functools.partial(function, net), net.e_params(), lr=0.1)
    with pytest.raises(TypeError, match=f"got the function {function.__name__}, which knows {known}: "):
        copy.deepcopy(loop)


def tied():
    net = networks.mlp([6, 6, 6, 3])
    net.edges[1][1].weight = net.edges[0].weight
    return net


def normalised():
    layers = torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Tanh(), torch.nn.Dropout(), torch.nn.Linear(5, 3)
    return networks.from_sequential(torch.nn.Sequential(*layers))


@pytest.mark.parametrize("make", [lambda: networks.mlp([6, 5, 3]), tied, normalised], ids=["mlp", "tied", "batch norm"])
def test_safetensors_hold_a_network(make, tmp_path):
    net, other = make(), make()
    em, x = em_of(net), torch.rand(10, 6)
    for _ in range(3):
        em.step(x, torch.rand(10, 3))
    save_model(net, tmp_path / "net.safetensors")
    missing, unexpected = load_model(other, tmp_path / "net.safetensors")
    assert not missing
    assert not unexpected
    assert all(map(torch.equal, net.m_params(), other.m_params()))
    net.eval(), other.eval()
    assert torch.equal(net.predict(x), other.predict(x))
