"""What happens to a process that uses this package: forks, second imports, reloads."""

import pytest

import forks
from pyromancy import native

FORK = """
import os, select, sys, torch
import chains
from pyromancy import functional, ops
assert torch.get_num_threads() == 2
torch.manual_seed(1)
large, factor = torch.randn(2, 300, 600), torch.eye(600) + 0.01 * torch.randn(600, 600).tril()
problem = chains.problem((40, 30, 20), 64)

def work():
    torch.manual_seed(2)
    value, pred = large.clone()
    functional.estep_(value, pred, lr=0.1)
    copies = {k: [t.clone() for t in v] if k == "states" else v for k, v in problem.items()}
    chains.operator(**copies)
    energy, whitened = ops.multivariate_energy(value[:, None], pred[:, None], factor)
    done = [ops.gaussian_error(value, pred, None, None), energy, whitened, *copies["states"], value.tanh()]
    done += [ops.gaussian_energy(value, pred, value[0]), ops.cholesky_factor(value[0], factor)]
    return b"".join(t.numpy().tobytes() for t in done)

before = work()
for _ in range(2):  # the child has a child of its own
    receive, send = os.pipe()
    child = os.fork()
    if child:
        break
    os.write(send, b"same" if work() == before else b"different")
if child:
    ready, _, _ = select.select([receive], [], [], 120)
    answer = os.read(receive, 9) if ready else b"nothing"
    if not ready:
        os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    assert (answer, status) == (b"same", 0), (answer, status)
    assert work() == before
print("done", flush=True)
os._exit(0)  # as `multiprocessing` leaves a child: PyTorch's own threads hang at the usual end of one
"""


@pytest.mark.slow
@pytest.mark.skipif(native.MODULE is None, reason="it is the compiled module that sees to forks")
def test_a_forked_child_computes_what_its_parent_did():
    """PyTorch's threads are not there in a child, and it would wait for them."""
    assert forks.python("-c", FORK, package=False, OMP_NUM_THREADS="2") == "done\n" * 3


AGAIN = """
import gc, importlib, sys
import torch
torch.version.cuda = {cuda!r}  # with one, Triton's kernels are registered too

def imported():
    import pyromancy
    return pyromancy

def purge():
    for name in [name for name in sys.modules if name.split(".")[0] == "pyromancy"]:
        del sys.modules[name]
    gc.collect()

def energy_of(package):
    node = package.nodes.FactorizedGaussianNode(3)
    node.init(torch.ones(2, 3))
    package.InferenceLoop(lambda: node.energy(torch.zeros(2, 3)), [node.value], lr=0.5).run(1)
    node.error(torch.zeros(2, 3)).sum().backward()
    return node.energy(torch.zeros(2, 3)).tolist()
"""

WAYS = {
    "import": "purge(); second = imported()",
    "reload": "importlib.reload(first); second = imported()",
    "reload-all": """
# in the order in which they were done importing: what others take names from comes first
for name in [name for name in sys.modules if name.startswith("pyromancy") and name != "pyromancy._C"]:
    importlib.reload(sys.modules[name])
second = imported()
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("cuda", [None, "12.8"], ids=["cpu", "cuda"])
@pytest.mark.parametrize("way", WAYS)
def test_a_second_import(way, cuda):
    """Both work, and are served alike."""
    forks.python(
        "-c",
        "import warnings; warnings.simplefilter('error')\n" + AGAIN.format(cuda=cuda) +
        "first = imported(); report = first.backends.describe(); energy_of(first)\n"
        + WAYS[way] + "\n"
        "assert energy_of(second) == energy_of(first) == [0.375, 0.375]\n"
        "assert second.backends.describe() == report\n"
        "with second.backends.use('reference'): assert energy_of(second) == energy_of(first)\n"
        "del first; purge(); assert energy_of(imported()) == energy_of(second)\n",
        package=False,
    )  # fmt: skip


@pytest.mark.slow
def test_an_import_after_one_that_was_interrupted():
    forks.python(
        "-c",
        AGAIN.format(cuda=None) + """
define = torch.library.Library.impl
calls = []
def interrupted(*args, **kwargs):
    calls.append(args)
    if len(calls) == 20:
        raise KeyboardInterrupt
    return define(*args, **kwargs)
torch.library.Library.impl = interrupted
try:
    imported()
except KeyboardInterrupt:
    purge()
else:
    raise AssertionError(len(calls))
package = imported()
assert energy_of(package) == [0.375, 0.375]
from pyromancy.ops import schema
for name in schema.SCHEMAS:
    for key in ("Meta", "CompositeExplicitAutograd"):
        assert schema.registered(name, key), (name, key)
""",
        package=False,
    )  # fmt: skip


@pytest.mark.slow
def test_operators_of_another_version_are_refused():
    told = forks.python(
        "-c",
        "import torch\n"
        "library = torch.library.Library('pyromancy', 'FRAGMENT')\n"
        "library.define('estep_(Tensor(a!) value, float rate) -> ()')\n"
        "import pyromancy",
        package=False,
        expect=1,
    )
    assert "another version of pyromancy has defined pyromancy::estep_(Tensor(a!) value, float rate) -> ()" in told
    assert "start Python anew" in told
