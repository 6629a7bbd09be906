"""Claims about the benchmark of couplings: what it compares is what it says."""

import sys

import pytest
import torch
from coupling_part import coupling, make_batch, paired, projected_and_paired

from cellbridge.transport.cost import transport_cost
from cellbridge.transport.coupling import couple


@pytest.fixture(scope="module")
def batch():
    return make_batch(24, device=torch.device("cpu"))


def test_pairs_of_images_are_those_of_the_exact_coupling_of_their_projections(batch):
    source, target = paired(batch, method="exact")
    expected = couple(transport_cost(batch.source_features, batch.target_features), method="exact").permutation
    assert torch.equal(source, batch.source)
    assert torch.equal(target, batch.target[expected])


def test_projecting_anew_gives_the_same_pairs(batch):
    assert torch.equal(projected_and_paired(batch)[1], paired(batch, method="exact")[1])


def test_plan_costs_what_torchcfms_does_on_equal_costs(batch):
    sampler = pytest.importorskip("torchcfm.optimal_transport").OTPlanSampler("exact")
    cost = transport_cost(batch.source_features, batch.target_features, dtype=torch.float64)
    plan = torch.as_tensor(sampler.get_map(batch.source_features, batch.target_features))
    assert couple(cost, method="exact").cost == pytest.approx(float((plan * cost).sum()), rel=1e-6)


def test_without_the_peer_every_row_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcfm.optimal_transport", None)
    rows = coupling(quick=True, device=torch.device("cpu"))["rows"]
    assert rows
    assert all(row["value"] is None and "cellbridge[bench]" in row["why"] for row in rows)


@pytest.mark.slow
def test_every_goal_of_the_part_is_met():
    pytest.importorskip("torchcfm")
    rows = coupling(quick=True, device=torch.device("cpu"))["rows"]
    assert [row["claim"] for row in rows if row["met"] is False and row["unit"] != "×"] == []
