"""Plans whose nodes have weights per sample, and whose edges have scaled or transposed weights."""

import pytest
import torch

from chains import BATCHES, check, check_alone, operator, problem, with_weights_and_scales
from numerics import FLOATS, name


@pytest.mark.usefixtures("backend")
class TestWeightsPerSampleAndScales:
    @pytest.mark.parametrize("dtype", FLOATS, ids=name)
    @pytest.mark.parametrize("batch", BATCHES)
    @pytest.mark.parametrize("covariances", [False, True, "one"])
    def test_steps_are_autograds(self, covariances, batch, dtype):
        a = problem((5, 33, 40, 3), batch, "tanh", "softplus", prior="one", clamped=(-1,), covariances=covariances,
                    momentum={"momentum": 0.8}, record=True, dtype=dtype)  # fmt: skip
        check(with_weights_and_scales(a))

    def test_weights_of_any_layout(self):
        a = with_weights_and_scales(problem((5, 33, 7, 3), 17, "tanh", prior="one"))
        a["sample_weights"][0] = torch.rand(17, 2, dtype=torch.float64)[:, 1]
        a["sample_weights"][3] = torch.rand(1, dtype=torch.float64).expand(17)
        a["weights"] = [w.T.contiguous().T for w in a["weights"]]
        check(a)

    def test_grams_of_scaled_edges(self):
        a = problem((5, 33, 7, 63), 17, "tanh")
        a["forms"] = [(False, 2.0, 1.0), (False, 1.0, 2.0), (True, 0.5, 0.3)]
        a["weights"][2] = a["weights"][2].T.contiguous()
        a["grams"][2] = True
        check(a)

    def test_a_sample_of_no_weight_moves_nothing_above_it(self):
        a = problem((5, 7, 3), 4, "tanh")
        a["sample_weights"] = [None, None, torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)]
        a["states"][1] = torch.nn.functional.linear(torch.tanh(a["states"][0]), a["weights"][0], a["biases"][0])
        before = a["states"][1].clone()
        operator(**a)
        torch.testing.assert_close(a["states"][1][1::2], before[1::2])
        assert ((a["states"][1] - before)[::2].abs() > 1e-3).any(1).all()


@pytest.mark.usefixtures("native_backend")
@pytest.mark.parametrize("covariances", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_no_sample_depends_on_others_or_on_threads(dtype, covariances):
    """In any bit, with weights per sample and scaled edges: tiles of every kind."""
    a = problem((5, 70, 33, 3), 70, "tanh", "tanh", covariances=covariances, record=True, dtype=dtype)
    a = with_weights_and_scales(a | {"prior": None})
    a["predicted"][0], a["sample_weights"][0] = False, None
    a["sample_weights"][2] = torch.rand(70, dtype=dtype)
    check_alone(a)
