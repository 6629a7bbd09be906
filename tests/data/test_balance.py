"""Class-balanced weights against the closed form and the paper's limits."""

import numpy as np
import pytest
import torch

from cellbridge.data.balance import (
    classes_of,
    draw_evenly,
    effective_number_weights,
    effective_sample_size,
    sample_weights,
)
from cellbridge.errors import ConfigError

N = (5000, 500, 50)


@pytest.mark.parametrize(
    ("beta", "expected"),
    [(0.999, (0.762411, 1.923897, 15.519955)), (0.9999, (0.4276, 3.4500, 33.7361))],
)
def test_weights_equal_the_closed_form_normalised_to_a_mean_of_one(beta, expected):
    weights = effective_number_weights(N, beta=beta)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5e-5)
    effective = torch.tensor([(1 - beta**n) / (1 - beta) for n in N], dtype=torch.float64)
    torch.testing.assert_close(weights * effective, (weights * effective)[:1].expand(3), rtol=1e-9, atol=0)
    assert float((weights * torch.tensor(N)).sum()) == pytest.approx(5550, rel=1e-12)


def test_effective_numbers_and_class_masses_are_those_of_the_paper_at_beta_0_999():
    weights = effective_number_weights(N, beta=0.999)
    mass = weights * torch.tensor(N) / 5550
    torch.testing.assert_close(mass, torch.tensor([0.687, 0.173, 0.140], dtype=torch.float64), rtol=0, atol=5e-4)
    cui = 3 * weights / weights.sum()
    torch.testing.assert_close(
        cui, torch.tensor([0.125629, 0.317017, 2.557354], dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("beta", "mean"), [(0.99, 0.671), (0.999, 0.165), (0.9999, 0.080)])
def test_weights_that_add_up_to_the_number_of_classes_would_shrink_the_loss(beta, mean):
    """The paper's normalisation; ours has a mean of 1 over the cells."""
    weights = effective_number_weights(N, beta=beta)
    cui = 3 * weights / weights.sum()
    assert float((cui * torch.tensor(N)).sum()) / 5550 == pytest.approx(mean, abs=6e-4)


def test_beta_zero_weighs_all_alike_and_beta_one_by_inverse_frequency():
    torch.testing.assert_close(effective_number_weights(N, beta=0.0), torch.ones(3, dtype=torch.float64))
    inverse = torch.tensor([5550 / 3 / n for n in N], dtype=torch.float64)
    torch.testing.assert_close(effective_number_weights(N, beta=1.0), inverse)
    torch.testing.assert_close(effective_number_weights(N, beta=1 - 1e-12), inverse, rtol=1e-6, atol=0)


def test_one_class_alone_is_not_reweighted():
    torch.testing.assert_close(effective_number_weights([37], beta=0.999), torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize(("beta", "share"), [(0.99, 0.98), (0.999, 0.33), (0.9999, 0.087)])
def test_effective_sample_size_falls_as_beta_rises(beta, share):
    classes = torch.repeat_interleave(torch.arange(3), torch.tensor(N))
    weights = sample_weights(classes, beta=beta)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
    assert effective_sample_size(weights) / 5550 == pytest.approx(share, abs=0.006)


def test_effective_sample_size_counts_equal_weights():
    assert effective_sample_size(torch.full((7,), 0.3)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([1.0, 0.0, 0.0])) == 1.0
    assert effective_sample_size(torch.zeros(3)) == 0.0


def test_classes_are_the_combinations_that_occur():
    classes, names = classes_of(["DMSO", "taxol@1", "DMSO", "DMSO"], ["P1", "P1", "P2", "P1"])
    assert names == (("DMSO", "P1"), ("DMSO", "P2"), ("taxol@1", "P1"))
    assert classes.tolist() == [0, 2, 1, 0]


def test_impossible_requests_are_refused():
    with pytest.raises(ConfigError, match=r"beta = 1.5, expected a number in \[0, 1\]"):
        effective_number_weights(N, beta=1.5)
    with pytest.raises(ConfigError, match="at least one in each"):
        effective_number_weights([3, 0], beta=0.9)


def test_a_draw_is_as_even_over_groups_as_their_sizes_allow():
    rows = np.arange(100, 160)
    groups = np.array(["a"] * 50 + ["b"] * 8 + ["c"] * 2, dtype=object)
    drawn = draw_evenly(rows, groups, n=14, seed=3)
    assert (np.diff(drawn) > 0).all()
    assert [int((groups[drawn - 100] == group).sum()) for group in "abc"] == [6, 6, 2]
    np.testing.assert_array_equal(drawn, draw_evenly(rows, groups, n=14, seed=3))
    np.testing.assert_array_equal(draw_evenly(rows, groups, n=999, seed=3), rows)
