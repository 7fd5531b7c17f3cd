"""The noise of Langevin dynamics: a published generator, and normal numbers that are independent."""

import math

import pytest
import torch

from pyromancy.methods import noise


def of(words):
    return tuple(torch.tensor([w]) for w in words)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)  # fmt: skip
def test_words_are_those_of_its_authors(counter, key, expected):
    """The known answers of the Random123 library."""
    low, high = key
    seed = torch.tensor([(high << 32 | low) - (2**64 if high >> 31 else 0)])
    assert [int(w) for w in noise.philox(of(counter), seed)] == [*expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_standard_normal(dtype):
    """Moments, and correlations between samples, elements, steps, variables and seeds, within 5 deviations."""
    count, size = 400, 250
    like = torch.empty(count, size, dtype=dtype)

    def drawn(seed, step, variable):
        return noise.normal(torch.full((count,), seed), torch.full((count,), step), variable, like).double()

    x = drawn(7, 3, 1)
    n = x.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = {1: 1, 2: 2, 3: 15, 4: 96}[power]
        assert abs((x**power).mean().item() - moment) < 5 * math.sqrt(spread / n)
    others = [drawn(8, 3, 1), drawn(7, 4, 1), drawn(7, 3, 2), x.roll(1, 0), x.roll(1, 1), x.roll(2, 1)]
    assert all(abs((x * y).mean().item()) < 5 / math.sqrt(n) for y in others)
    assert abs(x.abs().max().item() - 4.5) < 1.5


def test_it_is_one_function_of_the_place():
    """Whatever else there is: of more samples, and more elements."""
    seed, step = torch.full((5,), 2**53 - 1), torch.arange(5)
    many = noise.normal(seed, step, 2, torch.empty(5, 3, 7))
    few = noise.normal(seed[:2], step[:2], 2, torch.empty(2, 13))
    assert torch.equal(many.reshape(5, -1)[:2, :13], few)
