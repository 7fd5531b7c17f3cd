"""Plans whose edges add a share of the state itself to their product, against autograd in float64."""

import re

import pytest

from chains import (
    BATCHES,
    FUNCTIONS,
    SOME,
    check,
    check_alone,
    check_mstep,
    check_resumed,
    operator,
    problem,
    to,
    with_skips,
    with_weights_and_scales,
)
from numerics import FLOATS, name, same_bits
from pyromancy.plan import Law

WIDTHS = (5, 17, 17, 17, 3)
OPTIONS = {
    "plain": {},
    "before": {"before": "tanh"},
    "after": {"before": "relu", "after": "tanh"},
    "no-bias": {"biases": False, "before": "relu"},
    "prior": {"prior": "batch", "clamped": (-1,), "before": "tanh"},
    "clamped-within": {"clamped": (0, 2, -1), "before": "tanh", "after": "softplus"},
    "open-end": {"clamped": (0,), "before": "gelu"},
    "covariances": {"covariances": True, "prior": "batch", "clamped": (-1,), "after": "tanh"},
    "momentum": {"momentum": {"momentum": 0.8, "nesterov": True}, "before": "tanh"},
}
options = pytest.mark.parametrize("option", OPTIONS)


@pytest.mark.usefixtures("backend")
class TestSkips:
    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @options
    def test_steps_are_autograds(self, option, dtype):
        check(with_skips(problem(WIDTHS, SOME, record=True, dtype=dtype, **OPTIONS[option])))

    @pytest.mark.parametrize("batch", BATCHES)
    @pytest.mark.parametrize("widths", [(1, 1, 1), (33, 33, 33), (63, 63, 2)])
    def test_sizes(self, widths, batch):
        check(with_skips(problem(widths, batch, "tanh", prior="one", clamped=(-1,))))

    @pytest.mark.parametrize("side", ["before", "after"])
    @pytest.mark.parametrize("activation", FUNCTIONS)
    def test_activations(self, activation, side):
        check(with_skips(problem((5, 9, 9, 3), SOME, **{side: activation})))

    @pytest.mark.parametrize("option", [o for o in OPTIONS if o != "momentum"])
    def test_gradients_are_autograds(self, option):
        check_mstep(with_skips(problem(WIDTHS, 17, **OPTIONS[option])))

    def test_beside_scales_and_weights_of_samples(self):
        a = problem((5, 9, 9, 9), SOME, "tanh", prior="one", clamped=(-1,))
        check(with_skips(with_weights_and_scales(a), 1.0, 0.3))

    def test_resumed(self):
        check_resumed(with_skips(problem((5, 9, 9, 3), 4, "tanh", momentum={"momentum": 0.8})))

    def test_what_starts_at_its_prediction_has_no_error(self):
        """Not by a bit: without a target above nothing moves."""
        for dtype in FLOATS:
            a = with_skips(problem((5, 40, 40, 40), SOME, "tanh", clamped=(0,), dtype=dtype))
            a["swept"] = [False, True, True, True]
            once = {k: to(x) for k, x in a.items()} | {"steps": 0}
            operator(**once)
            operator(**a)
            assert all(same_bits(x, y) for x, y in zip(a["states"], once["states"], strict=True))

    def test_into_classes(self):
        """A skip adds to logits, which a kernel of their own normalizes."""
        for dtype in FLOATS:
            a = with_skips(problem((5, 7, 7), SOME, "tanh", record=True, dtype=dtype), 0.4)
            a["laws"] = [Law.GAUSSIAN, Law.GAUSSIAN, Law.CATEGORICAL]
            a["states"][-1] = a["states"][-1].softmax(1)
            check(a)

    def test_a_gram_is_refused(self):
        a = problem((5, 7, 7), 4)
        a["grams"][-1] = True
        operator(**{k: to(x) for k, x in a.items()})
        with pytest.raises(RuntimeError, match=re.escape("gram of edge 1 needs a free source")):
            operator(**with_skips(a))


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_no_sample_depends_on_others_or_on_threads(dtype):
    """In any bit: tiles of every kind."""
    a = with_skips(problem((5, 33, 33, 33, 3), 70, "tanh", covariances=True, record=True, dtype=dtype))
    check_alone(a)
