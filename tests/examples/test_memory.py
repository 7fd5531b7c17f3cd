"""The example of associative memory, as a person runs it, and what it recalls beside scikit-learn's lasso."""

import pytest
import torch
from sklearn.linear_model import Lasso


@pytest.mark.slow
def test_it_recalls_and_draws(example, tmp_path, capsys):
    path = tmp_path / "picture.png"
    errors = example.main(["--rounds", "300", "--noise", "0.3", "--plot", str(path)])
    assert [*errors] == ["half of the pixels", "the upper half", "noise of 0.3"]
    for task, most in zip(errors, (0.004, 0.006, 0.02), strict=True):  # the pixels' variance is 0.14, the noise's 0.09
        found = errors[task]
        assert found["this network"] < most
        assert found["this network"] < min(found["modern Hopfield"], found["Hopfield"]) / 3
        assert found["by distance"] < found["modern Hopfield"]
    assert path.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "100 images of scikit-learn's digits in 150 atoms" in printed
    assert f"{errors['the upper half']['this network']:.2g}" in printed


@pytest.mark.parametrize("masked", [True, False], ids=["some pixels", "all pixels"])
def test_the_code_is_that_of_the_lasso_on_known_pixels(example, masked):
    memory = example.Memory(60).double()
    given = torch.rand(4, 60).double()
    known = torch.rand(4, 60) < 0.7
    found = memory.recall(given, known if masked else None)
    atoms, prior = memory.atoms.weight.detach(), example.PRIOR * (0.1 if masked else 1)
    for i in range(4):
        rows = known[i] if masked else torch.ones(60, dtype=torch.bool)
        count = int(rows.sum())
        lasso = Lasso(prior / count, positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
        code = torch.from_numpy(lasso.fit(atoms[rows].numpy(), given[i, rows].numpy()).coef_)
        assert 0 < (code > 0).sum() < 60
        expected = atoms @ code
        if masked:
            expected[rows] = given[i, rows]
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-5)


def test_hopfield_networks_recall_what_is_within_their_capacity(example):
    patterns = (torch.rand(4, 200) < 0.5).float()  # of random ones a classical network stores 0.138 per unit
    known = torch.rand(4, 200) < 0.6
    assert torch.equal(example.hopfield(patterns, patterns, known), patterns)
    noisy = torch.where(torch.rand(4, 200) < 0.1, 1 - patterns, patterns)
    assert torch.equal(example.hopfield(patterns, noisy, None), patterns)
    for distance in (False, True):
        torch.testing.assert_close(example.modern_hopfield(patterns, patterns, known, 10.0, distance), patterns)
        torch.testing.assert_close(example.modern_hopfield(patterns, noisy, None, 10.0, distance), patterns)


def test_the_error_is_that_of_missing_pixels(example):
    found, images = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert example.error(found, images, torch.tensor([[False, True, False]])) == pytest.approx(4.5)
    assert example.error(found, images, None) == pytest.approx(13 / 3)
