"""Ways to write an affine map: all of them are the edges of chains, with fused M-step gradients."""

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import pyromancy as pyro
from descent import assert_as_autograd, free
from pyromancy.functional import gaussian_energy, multivariate_energy


class Net:
    """Data, two hidden states and a target of odd widths in float64; W is a Linear's weight, V one stored [in, out]."""

    def __init__(self, batch=7):
        self.x, self.y = torch.randn(batch, 6).double(), torch.randn(batch, 3).double()
        self.z = free(batch, 5)
        self.up, self.top = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
        self.W, self.b = self.top.weight, self.top.bias
        self.V = free(5, 3)
        self.s, self.fixed = nn.Parameter(torch.randn(()).double()), torch.tensor(0.7).double()
        self.logvar = free(3)

    @property
    def learned(self):
        return [*self.up.parameters(), *self.top.parameters(), self.V, self.s]

    def energy(self, predict):
        return gaussian_energy(self.z, self.up(self.x)) + gaussian_energy(self.y, predict(self, self.z))


EDGES = {
    "operator": lambda n, z: z @ n.W.T,
    "T-of-T": lambda n, z: z @ n.W.T.T.mT,
    "t": lambda n, z: z @ n.W.t(),
    "transpose": lambda n, z: z @ n.W.transpose(0, 1),
    "transpose-from-the-end": lambda n, z: z @ torch.transpose(n.W, -1, -2),
    "permute": lambda n, z: z @ n.W.permute(1, 0),
    "swapaxes": lambda n, z: z @ n.W.swapaxes(0, 1),
    "matmul": lambda n, z: torch.matmul(z, n.W.T),
    "method": lambda n, z: z.matmul(n.W.T) + n.b,
    "mm": lambda n, z: torch.mm(z, n.W.t()),
    "plus-bias": lambda n, z: z @ n.W.T + n.b,
    "bias-plus": lambda n, z: n.b + z @ n.W.T,
    "plus-row": lambda n, z: z @ n.W.T + n.b.unsqueeze(0),
    "minus-bias": lambda n, z: z @ n.W.T - n.b,
    "bias-minus": lambda n, z: n.b - z @ n.W.T,
    "rsub": lambda n, z: torch.rsub(z @ n.W.T, n.b),
    "in-place": lambda n, z: (z @ n.W.T).add_(n.b),
    "two-biases": lambda n, z: n.top(z) + n.logvar,
    "number-after": lambda n, z: n.top(z) + 1.5,
    "number-before": lambda n, z: 1.5 - n.top(z),
    "scalar-bias": lambda n, z: z @ n.W.T + n.s,
    "scalar-beside-bias": lambda n, z: n.top(z) - n.s,
    "addmm": lambda n, z: torch.addmm(n.b, z, n.W.T),
    "addmm-method": lambda n, z: n.b.addmm(z, n.W.t()),
    "addmm-keywords": lambda n, z: torch.addmm(input=n.b, mat1=z, mat2=n.W.t()),
    "linear": lambda n, z: F.linear(z, n.W, n.b),
    "linear-of-T": lambda n, z: F.linear(z, n.V.T, n.b),
    "linear-keywords": lambda n, z: F.linear(input=z, weight=n.W, bias=n.b),
    "aten": lambda n, z: torch.ops.aten.addmm(n.b, z, torch.ops.aten.t(n.W)),
    "einsum": lambda n, z: torch.einsum("bi,oi->bo", z, n.W),
    "einsum-other-letters": lambda n, z: torch.einsum("nk, hk -> nh", z, n.W) + n.b,
    "einsum-weight-first": lambda n, z: torch.einsum("oi,bi->bo", n.W, z),
    "einsum-stored-otherwise": lambda n, z: torch.einsum("bi,io->bo", z, n.V),
    "einsum-turned": lambda n, z: torch.einsum("oi,bi->ob", n.W, z).T,
    "einsum-of-turned": lambda n, z: torch.einsum("oi,ib->bo", n.W, z.T),
    "einsum-implicit": lambda n, z: torch.einsum("bi,io", z, n.V),
    "einsum-list": lambda n, z: torch.einsum("bi,oi->bo", [z, n.W]),
    "columns": lambda n, z: (n.W @ z.T).T,
    "columns-and-bias": lambda n, z: (n.W @ z.T).T + n.b,
    "columns-contiguous": lambda n, z: torch.mm(n.W, z.t().contiguous()).t().contiguous(),
    "columns-scaled": lambda n, z: (0.5 * (n.W @ z.T)).T,
    "stored-otherwise": lambda n, z: z @ n.V,
    "stored-otherwise-and-bias": lambda n, z: torch.addmm(n.b, z, n.V),
    "activation-before": lambda n, z: torch.tanh(z) @ n.W.T,
    "activation-after": lambda n, z: torch.sigmoid(z @ n.V + n.b),
    "both": lambda n, z: F.leaky_relu(torch.relu(z) @ n.V + n.b, 0.1),
    "scaled": lambda n, z: 0.5 * n.top(z),
    "scaled-before": lambda n, z: n.top(0.5 * z),
    "scaled-activation": lambda n, z: n.top(torch.tanh(z) * 2),
    "scaled-everywhere": lambda n, z: torch.relu(-(n.top(3 * torch.tanh(z)) / 2) * n.fixed),
    "divided": lambda n, z: n.top(z) / math.sqrt(5),
    "divided-before": lambda n, z: n.top(torch.tanh(z) / math.sqrt(5)),
    "mul-method": lambda n, z: n.top(z).mul(n.fixed),
    "learned-scale": lambda n, z: n.s * n.top(z),
    "learned-scale-twice": lambda n, z: n.s * n.top(n.s * z) + n.b,
    "scale-and-bias": lambda n, z: n.fixed * (z @ n.W.T) + n.b,
    "scale-in-float32": lambda n, z: torch.tensor(0.7) * n.top(z),
    "negative": lambda n, z: -n.top(-torch.tanh(z)),
    "scaled-weight": lambda n, z: F.linear(z, n.W * 0.5, n.b),
    "masked-weight": lambda n, z: F.linear(z, n.W * (n.V.T > 0), n.b),
    "product-of-weights": lambda n, z: z @ (n.V @ n.W @ n.V),
    "weight-norm": lambda n, z: F.linear(z, n.s * n.W / n.W.norm(dim=1, keepdim=True), n.b.exp()),
    "weight-used-twice-within": lambda n, z: F.linear(z, n.W * n.W),
    "detached": lambda n, z: F.linear(z, n.W.detach(), n.b),
    "view": lambda n, z: n.top(z.view(z.shape[0], -1)),
    "view-as": lambda n, z: n.top(z.view_as(z)),
    "flatten": lambda n, z: n.top(torch.tanh(z.flatten(1))),
    "reshape": lambda n, z: n.top(z.reshape(-1, 5)).reshape(z.shape[0], 3),
    "contiguous-clone": lambda n, z: n.top(z.contiguous().clone()),
    "double": lambda n, z: n.top(z.double()),
    "dropout-in-evaluation": lambda n, z: n.top(F.dropout(z, 0.5, training=False)),
    "dropout-module": lambda n, z: nn.Dropout(0.5).eval()(n.top(z)),
    "identity": lambda n, z: nn.Sequential(nn.Identity(), n.top, nn.Flatten())(z),
}  # fmt: skip


def assert_fused(energy, states, learned, **options):
    for p in learned:
        p.grad = None
    explained = assert_as_autograd(energy, states, learned, 4, tolerance=1e-12, **options)
    assert explained.startswith("executor: chain"), explained
    assert "not " not in explained.replace("not chosen", ""), explained


@pytest.mark.parametrize(
    ("name", "batch"), [*((name, 7) for name in EDGES), *((name, 1) for name in EDGES if name != "plus-row")]
)
def test_an_edge_however_it_is_written(name, batch):
    """The row of a bias is data where there is one sample, for all that is known."""
    n = Net(batch)
    assert_fused(lambda: n.energy(EDGES[name]), [n.z], n.learned)


SKIPS = {
    "state-first": lambda n, z: z + n.square(torch.tanh(z)),
    "state-last": lambda n, z: n.square(torch.tanh(z)) + z,
    "scaled": lambda n, z: 0.5 * z + 0.3 * (torch.relu(z) @ n.S.T),
    "divided": lambda n, z: z / 3 - (torch.relu(z) @ n.S.T) / 2,
    "taken-off": lambda n, z: n.square(torch.tanh(z)) - z,
    "taken-from": lambda n, z: z - n.square(torch.tanh(z)),
    "negative": lambda n, z: -(-z - n.square(z)),
    "alpha-of-the-state": lambda n, z: torch.add(n.square(torch.tanh(z)), z, alpha=0.4),
    "alpha-of-the-product": lambda n, z: torch.add(z, n.square(torch.tanh(z)), alpha=0.4),
    "sub-alpha": lambda n, z: z.sub(n.square(torch.tanh(z)), alpha=0.4),
    "rsub-alpha": lambda n, z: torch.rsub(n.square(torch.tanh(z)), z, alpha=0.4),
    "aten": lambda n, z: torch.ops.aten.add(z, n.square(torch.tanh(z))),
    "addmm": lambda n, z: torch.addmm(z, torch.tanh(z), n.S.T),
    "bias-after": lambda n, z: z + torch.tanh(z) @ n.S.T + n.b,
    "bias-after-alpha": lambda n, z: torch.add(z + torch.tanh(z) @ n.S.T, n.b, alpha=0.5),
    "bias-before": lambda n, z: n.b - (z + torch.tanh(z) @ n.S.T),
    "number-after": lambda n, z: 1.5 - (z + n.square(z)),
    "twice": lambda n, z: z + n.square(torch.tanh(z)) + z / 2,
    "scaled-together": lambda n, z: 0.7 * (z + n.square(torch.tanh(z))),
    "activation-after": lambda n, z: torch.tanh(z + n.square(torch.relu(z))),
    "columns": lambda n, z: (n.S @ z.T).T + z,
    "identity-module": lambda n, z: nn.Identity()(z) + n.square(torch.tanh(z)),
    "clone": lambda n, z: z.clone().add_(n.square(torch.tanh(z))),
    "in-place": lambda n, z: n.square(torch.tanh(z)).add_(z),
    "module": lambda n, z: pyro.networks.Skip(nn.Sequential(nn.Tanh(), n.square))(z),
    "gone": lambda n, z: z + n.square(torch.tanh(z)) - z,
}  # fmt: skip


class Square(Net):
    """A net with a state between, of the same width as the one below."""

    def __init__(self, batch=7):
        super().__init__(batch)
        self.w, self.square, self.b = free(batch, 5), nn.Linear(5, 5).double(), free(5)
        self.S = self.square.weight

    def energy(self, predict):
        first, last = gaussian_energy(self.z, self.up(self.x)), gaussian_energy(self.y, self.top(torch.tanh(self.w)))
        return first + gaussian_energy(self.w, predict(self, self.z)) + last


@pytest.mark.parametrize("batch", [7, 1])
@pytest.mark.parametrize("name", SKIPS)
def test_a_skip_however_it_is_written(name, batch):
    n = Square(batch)
    learned = [*n.up.parameters(), *n.square.parameters(), n.b, *n.top.parameters()]
    assert_fused(lambda: n.energy(SKIPS[name]), [n.z, n.w], learned)


def test_a_skip_from_data_to_data():
    x, y, z = torch.randn(7, 5).double(), torch.randn(7, 5).double(), free(7, 5)
    first, last = nn.Linear(5, 5).double(), nn.Linear(5, 5).double()
    energy = lambda: gaussian_energy(z, x + first(torch.relu(x))) + gaussian_energy(y, 0.5 * z + last(z))  # noqa: E731
    assert_fused(energy, [z], [*first.parameters(), *last.parameters()])


def test_residuals_of_squares_written_out_are_no_skips():
    n = Square()

    def energy():
        first, last = gaussian_energy(n.z, n.up(n.x)), gaussian_energy(n.y, n.top(torch.tanh(n.w)))
        return first + 0.5 * (n.w - (n.z + n.square(torch.tanh(n.z)))).square().sum(1) + last

    assert_fused(energy, [n.z, n.w], [*n.up.parameters(), *n.square.parameters(), *n.top.parameters()])


NO_SKIPS = {
    "of-an-activation-of-an-activation": (
        lambda n, z: (lambda a: a + n.square(a))(torch.relu(torch.tanh(z))),
        "takes the result of tanh",
    ),
    "of-another-state": (lambda n, z: n.w.detach() + n.square(z), "comes from add"),
    "shares-that-learn": (lambda n, z: n.s * z + n.square(z), "comes from add"),
    "one-for-each-neuron": (lambda n, z: n.b * z + n.square(z), "comes from add"),
}


@pytest.mark.parametrize("name", NO_SKIPS)
def test_what_is_no_skip_says_so(name):
    predict, reason = NO_SKIPS[name]
    n = Square()
    explained = assert_as_autograd(lambda: n.energy(predict), [n.z, n.w], [*n.square.parameters()], 4)
    assert explained.startswith("executor: graph")
    assert reason in explained


@pytest.mark.parametrize("name", ["operator", "stored-otherwise-and-bias", "learned-scale", "columns", "view"])
def test_with_variances_and_momentum(name):
    n = Net()

    def energy():
        variances = n.logvar.clamp(-1, 1)
        return gaussian_energy(n.z, n.up(n.x)) + gaussian_energy(n.y, EDGES[name](n, n.z), variances)

    assert_fused(energy, [n.z], [*n.learned, n.logvar], momentum=0.9)


def test_with_a_full_covariance():
    n = Net()
    factor = torch.eye(3).double() + 0.1 * torch.ones(3, 3).double().tril()

    def energy():
        return gaussian_energy(n.z, n.up(n.x)) + multivariate_energy(n.y, n.s * (torch.tanh(n.z) @ n.V), factor)

    assert_fused(energy, [n.z], n.learned)


def test_a_square_in_which_all_dimensions_are_the_same():
    """Nothing tells rows from columns but what is called."""
    z, x, W, b = free(4, 4), torch.randn(4, 4).double(), free(4, 4), free(4)
    for predict in (lambda: z @ W, lambda: z @ W.T, lambda: (W @ z.T).T + b, lambda: torch.einsum("ab,bc->ac", z, W)):
        energy = lambda predict=predict: gaussian_energy(z, x) + gaussian_energy(x, predict())  # noqa: E731
        assert_fused(energy, [z], [W, b])


def test_products_that_are_none_of_rows():
    """Samples that are mixed, and states that multiply one another, are no edges."""
    z, x, W = free(4, 4), torch.randn(4, 4).double(), free(4, 4)
    for predict in (lambda: W @ z, lambda: z.T @ W, lambda: z @ z.T, lambda: W @ z @ W, lambda: z.T):
        energy = lambda predict=predict: gaussian_energy(z, x) + gaussian_energy(x, predict())  # noqa: E731
        W.grad = None
        assert assert_as_autograd(energy, [z], [W], 4).startswith("executor: graph")


DATA = {
    "flattened": lambda n, image: n.up(image.flatten(1)),
    "viewed": lambda n, image: n.up(image.view(len(image), -1)),
    "scaled": lambda n, image: n.up(image.reshape(-1, 6) / 255),
    "shifted": lambda n, image: n.up(image.flatten(1) - 0.5),
    "activated": lambda n, image: torch.tanh(n.up(torch.relu(image.flatten(1)))),
    "matmul": lambda n, image: image.flatten(1) @ n.up.weight.T + n.up.bias,
    "columns": lambda n, image: (n.up.weight @ image.flatten(1).T).T,
}


@pytest.mark.parametrize("name", DATA)
def test_images_that_are_clamped(name):
    n = Net()
    images = {"x": torch.randn(7, 1, 2, 3).double()}

    def energy():
        return gaussian_energy(n.z, DATA[name](n, images["x"])) + gaussian_energy(n.y, n.top(torch.tanh(n.z)))

    for _ in range(2):
        assert_fused(energy, [n.z], [*n.up.parameters(), *n.top.parameters()])
        images["x"] = torch.randn(7, 1, 2, 3).double()


def test_images_that_are_predicted():
    n = Net()
    image = torch.randn(7, 1, 3, 1).double()

    def energy():
        return gaussian_energy(n.z, n.up(n.x)) + gaussian_energy(image.flatten(1), n.top(n.z))

    assert_fused(energy, [n.z], [*n.up.parameters(), *n.top.parameters()])

    def by_hand():
        return gaussian_energy(n.z, n.up(n.x)) + 0.5 * ((image.view(7, -1) - 0.5 * n.top(n.z)) ** 2).sum(1)

    assert_fused(by_hand, [n.z], [*n.up.parameters(), *n.top.parameters()])


def test_new_weights_and_data_are_taken_up():
    """What is computed of weights is computed of them as they are at every run."""
    n = Net()
    loop = pyro.InferenceLoop(lambda: n.energy(lambda n, z: n.s * (z @ n.V) + n.b), [n.z], lr=0.1)
    for _ in range(3):
        with torch.no_grad():
            for t in (n.V, n.s, n.b, n.x):
                t.copy_(torch.randn_like(t))
        n.y = torch.randn_like(n.y)
        before = n.z.detach().clone()
        (gradient,) = torch.autograd.grad(n.energy(lambda n, z: n.s * (z @ n.V) + n.b).sum(), n.z)
        loop.run(1)
        torch.testing.assert_close(n.z.detach(), before - 0.1 * gradient, rtol=1e-12, atol=1e-12)
    assert loop.explain().startswith("executor: chain")


def test_batches_of_two_sizes_in_turn():
    """The captures of both rest and wake, and the chains with them."""
    nets = [Net(4), Net(6)]
    for n in nets:
        n.top, n.V, n.up = nets[0].top, nets[0].V, nets[0].up
    now = {"net": nets[0]}
    z = nn.Parameter(nets[0].z.detach().clone())

    def energy():
        n = now["net"]
        return gaussian_energy(z, n.up(n.x)) + gaussian_energy(n.y, 0.5 * (z @ n.V))

    loop = pyro.InferenceLoop(energy, [z], lr=0.1)
    for i in (0, 1, 0, 1, 1, 0):
        now["net"] = nets[i]
        z.data = nets[i].z.detach().clone()
        (gradient,) = torch.autograd.grad(energy().sum(), z)
        loop.run(1)
        torch.testing.assert_close(z.detach(), nets[i].z - 0.1 * gradient, rtol=1e-12, atol=1e-12)
        assert loop.explain().startswith("executor: chain")


NO_EDGES = {
    "cat": (lambda n, z: n.top(torch.cat([z, z], 1)[:, :5]), "a Linear takes the result of cat of n.z"),
    "skip": (lambda n, z: n.top(z) + z[:, ::2], "comes from add of n.z, not from a Linear"),
    "scaled-before-activation": (lambda n, z: n.top(torch.tanh(2 * z)), "a Linear takes the result of mul of n.z"),
    "scaled-after-activation": (lambda n, z: 2 * torch.tanh(n.top(z)), "comes from mul of n.z"),
    "of-samples": (lambda n, z: n.top(z) * n.x[:, :1], "comes from mul of n.z"),
    "three": (lambda n, z: torch.einsum("bi,io,o->bo", z, n.V, n.b), "comes from einsum of n.z"),
}


@pytest.mark.parametrize("name", NO_EDGES)
def test_what_is_no_edge_is_named(name):
    predict, told = NO_EDGES[name]
    n = Net()
    explained = assert_as_autograd(lambda: gaussian_energy(n.z, n.up(n.x)) + gaussian_energy(n.y, predict(n, n.z)),
                                   [n.z], n.learned[:2], 4)  # fmt: skip
    assert explained.startswith("executor: graph")
    assert told in explained


def test_what_does_not_change_has_the_bits_that_the_energy_gives_it():
    """A Laplace node at a prediction written otherwise stays there: an error of rounding size would move it."""
    x, w, logscale = torch.randn(64, 6).double(), torch.randn(5, 6).double(), torch.zeros(5).double()

    def predict():
        p = F.linear(x, w)
        return 0.3 * p * p / 0.7

    z = nn.Parameter(predict())
    loop = pyro.InferenceLoop(lambda: pyro.functional.laplace_energy(z, predict(), logscale), [z], lr=0.05)
    loop.run(3)
    assert loop.explain().startswith("executor: chain")
    assert torch.equal(z, predict())
