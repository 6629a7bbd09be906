"""Pairs in the order of training: an epoch pairs every source once, and nothing depends on where training was resumed."""

import numpy as np
import pytest
import torch
from test_dataset import N, data_of

from cellbridge.data import augment
from cellbridge.data.pairs import PairedBatch, PairSource, nearest_orientation
from cellbridge.errors import ConfigError

FIELDS = ("source", "target", "labels", "weights", "source_rows", "target_rows")
SOURCES, TARGETS = np.arange(0, 12), np.arange(12, N)


def drawn(epoch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(epoch)
    return rng.permutation(SOURCES), rng.choice(TARGETS, len(SOURCES))


def pairs(**options) -> PairSource:
    return PairSource(data_of(), drawn, **{"count": len(SOURCES), "batch_size": 8, "seed": 3, **options})


def test_an_epoch_shows_its_pairs_once_and_batches_run_on_across_its_end():
    source = pairs()
    shown = torch.cat([torch.stack(source.rows(step)[:2]) for step in range(3)], dim=1)
    for epoch in range(2):
        part = shown[:, 12 * epoch : 12 * (epoch + 1)]
        assert sorted(map(tuple, part.T.tolist())) == sorted(
            zip(*(side.tolist() for side in drawn(epoch)), strict=True)
        )


def test_images_labels_and_weights_belong_to_the_rows():
    weights = torch.linspace(0.5, 2.0, N)
    batch = pairs(augment=False, weights=weights)(1)
    data = data_of()
    assert torch.equal(batch.source, data.batch(batch.source_rows))
    assert torch.equal(batch.target, data.batch(batch.target_rows))
    assert torch.equal(batch.labels, batch.target_rows)
    assert torch.equal(batch.weights, weights[batch.target_rows])


def test_both_cells_of_a_pair_are_turned_alike():
    data = data_of()
    same = PairSource(data, lambda _: (SOURCES, SOURCES), count=12, batch_size=12, seed=0)
    batch = same(0)
    difference = (batch.source - batch.target).abs()
    plain = data.batch(batch.source_rows)
    assert float(difference.max()) < 0.1 < float((batch.source - plain).abs().max())


def test_the_nearest_orientation_undoes_any_turn():
    images = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest_orientation(images, augment.dihedral(images, torch.arange(8))), images)


def test_alignment_never_takes_a_pair_apart():
    far, near = pairs()(0), pairs(align=True)(0)
    assert torch.equal(far.source, near.source)
    distance = [(batch.source - batch.target).square().flatten(1).sum(1) for batch in (far, near)]
    assert bool((distance[1] <= distance[0]).all())
    assert bool((distance[1] < distance[0]).any())


def test_targets_are_turned_as_the_epoch_says_before_the_pair_is():
    turns = np.arange(12) % 8
    source = PairSource(data_of(), lambda _: (SOURCES, SOURCES, turns), count=12, batch_size=12, seed=0, augment=False)
    batch, (_, _, found) = source(0), source.rows(0)
    assert torch.equal(batch.target, augment.dihedral(batch.source, found))
    assert sorted(found.tolist()) == sorted(turns.tolist())


@pytest.mark.parametrize("align", [False, True])
def test_a_resumed_source_is_bit_equal_in_any_order_of_asking(align):
    through = pairs(align=align)
    first = [through(step) for step in range(6)]
    for step in (5, 1, 2):
        again = pairs(align=align)(step)
        for name in FIELDS:
            assert torch.equal(getattr(first[step], name), getattr(again, name))
    assert not torch.equal(pairs(seed=4)(1).source, first[1].source)


def test_accumulation_changes_nothing():
    whole, source = pairs()(2), pairs(accumulation=4)
    parts = [source(2, micro) for micro in range(4)]
    for name in FIELDS:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert [(part.step, part.micro) for part in parts] == [(2, micro) for micro in range(4)]


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    assert isinstance(pairs(align=True)(0), PairedBatch)
    assert torch.equal(before, torch.get_rng_state())


def test_misfits_are_refused():
    with pytest.raises(ConfigError, match=r"epoch 0 has \[12, 12\] sources and targets, expected 11 pairs"):
        pairs(count=11)(0)
    with pytest.raises(ConfigError, match="not a positive multiple"):
        pairs(accumulation=3)
    with pytest.raises(ConfigError, match="0 pairs in an epoch"):
        pairs(count=0)
