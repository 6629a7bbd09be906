"""Claims about whether outputs are still their source cells."""

from itertools import permutations

import numpy as np
import pytest
from drawn_cells import draw, study
from scipy.stats import binom
from skimage.metrics import structural_similarity

from cellbridge.metrics import identity
from cellbridge.metrics.content import channel_deviation
from cellbridge.metrics.identity import Scored, identity_retrieval, pixel_signature
from cellbridge.metrics.intervals import Blocks

DRAWS = {"resamples": 200, "seed": 0}


@pytest.fixture(scope="module")
def world():
    return study(0)


def retrieved(world, images, *, within_plate=True):
    source = world["source"]
    plates = source.plates if within_plate else None
    signatures = (pixel_signature(part) for part in (images, source.images))
    return identity_retrieval(*signatures, plates=plates, blocks=source.blocks, **DRAWS)


def scored(world):
    source = world["source"]
    masks = np.ones((len(source.images), *source.images.shape[2:]), bool)
    return Scored(source.images, masks, channel_deviation(source.images), source.plates, source.blocks)


def test_chance_is_one_over_the_number_of_sources_of_the_plate(world):
    found = retrieved(world, world["counterfactual"].images)
    assert (found.chance, found.gallery) == (1 / 60, 60)
    everything = retrieved(world, world["counterfactual"].images, within_plate=False)
    assert (everything.chance, everything.gallery) == (1 / 120, 120)


def test_outputs_that_are_all_alike_are_exactly_at_chance(world):
    found = retrieved(world, np.zeros_like(world["source"].images))
    assert found.top_1.value == pytest.approx(found.chance)
    assert found.auc.value == pytest.approx(0.5)
    assert found.median_rank.value == 30.5


def test_other_cells_of_the_target_are_at_chance():
    """A destroyer that looks like X: hits over many studies are binomial at 1/n, and half of the other sources lie nearer."""
    hits, aucs = 0, []
    for seed in range(8):
        world = {"source": draw(2 * seed), "real": draw(2 * seed + 1, treated=True)}
        found = retrieved(world, world["real"].images)
        hits += round(found.top_1.value * found.top_1.n)
        aucs.append(found.auc.value)
    assert hits <= binom.ppf(0.9995, 8 * 120, 1 / 60)
    assert abs(np.mean(aucs) - 0.5) < 4 * np.std(aucs) / np.sqrt(len(aucs))


def test_the_honest_counterfactual_is_far_above_chance(world):
    for images in (world["counterfactual"].images, world["source"].images):
        found = retrieved(world, images)
        assert found.top_1.low > 0.8
        assert found.median_rank.high == 1
        assert found.auc.low > 0.95


def test_what_a_compound_does_to_all_cells_alike_does_not_hide_them(world):
    source = world["source"]
    own = pixel_signature(source.images)
    effect = np.random.default_rng(0).normal(0, 10, own.shape[1])
    found = identity_retrieval(0.1 * own + effect, own, plates=source.plates, blocks=source.blocks, **DRAWS)
    assert found.top_1.value == 1


def test_ranks_count_nearer_sources_and_share_ties():
    sources = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    found = identity_retrieval(np.roll(sources, 1, axis=0), sources, blocks=Blocks(np.arange(4), "wells"), **DRAWS)
    assert found.ranks.tolist() == [2.5] * 4  # one nearer, one equally near
    assert found.top_1.value == 0
    assert found.auc.value == 0.5


def test_the_order_of_the_cells_changes_nothing(world):
    order = np.random.default_rng(0).permutation(120)
    source, images = world["source"], world["counterfactual"].images
    pairs = [pixel_signature(part[order]) for part in (images, source.images)]
    moved = identity_retrieval(*pairs, plates=source.plates[order], blocks=source.blocks.take(order), **DRAWS)
    found = retrieved(world, images)
    assert (moved.top_1, moved.auc.value) == (found.top_1, pytest.approx(found.auc.value))


def test_cost_of_a_copy_is_the_optimum_and_of_exchanged_cells_one(world):
    source = world["source"]
    copy = identity.transport_cost(source.images, source.images, source.blocks, **DRAWS)
    assert copy.cost.value == pytest.approx(0, abs=1e-6)
    assert copy.relative.value == pytest.approx(0, abs=1e-9)
    costs = []
    for seed in range(5):
        exchanged = source.images[np.random.default_rng(seed).permutation(120)]
        costs.append(identity.transport_cost(exchanged, source.images, source.blocks, **DRAWS).relative.value)
    assert np.mean(costs) == pytest.approx(1, abs=0.05)
    constant = identity.transport_cost(0 * source.images, source.images, source.blocks, **DRAWS)
    assert constant.to_dict()["relative"]["not_computed"]


def test_optimal_cost_is_the_least_of_all_pairings():
    x, y = np.random.default_rng(0).standard_normal((2, 6, 3))
    found = identity.transport_cost(y, x, Blocks(np.arange(6), "wells"), **DRAWS)
    costs = [((x - y[list(order)]) ** 2).sum(axis=1).mean() / 2 for order in permutations(range(6))]
    assert found.optimal.value == pytest.approx(min(costs))
    assert found.random.value == pytest.approx(np.mean(costs))
    assert found.cost.value == pytest.approx(costs[0])


def test_an_unchanged_cell_has_error_zero_and_another_one_error_one(world):
    cells = scored(world)
    same = identity.null_translation(cells.images, cells, **DRAWS)
    assert (same.error.value, same.relative.value, same.ssim.value) == (0, 0, pytest.approx(1))
    exchanged = cells.images.reshape(6, 20, *cells.images.shape[1:])[:, ::-1].reshape(cells.images.shape)
    other = identity.round_trip(exchanged, cells, **DRAWS)
    assert other.relative.low < 1 < other.relative.high
    assert other.ssim.value < 0.8


def test_similarity_is_that_of_scikit_image(world):
    cells = scored(world)
    rng = np.random.default_rng(0)
    noisy = (cells.images + rng.normal(0, 0.05, cells.images.shape)).astype(np.float32)
    expected = [
        structural_similarity(a, b, channel_axis=0, data_range=2.0) for a, b in zip(noisy, cells.images, strict=True)
    ]
    assert identity.null_translation(noisy, cells, **DRAWS).ssim.value == pytest.approx(np.mean(expected))


def test_signatures_do_not_see_gain_and_offset():
    images = np.random.default_rng(0).random((3, 2, 30, 30)).astype(np.float32)
    assert pixel_signature(0.3 * images - 0.2) == pytest.approx(pixel_signature(images), abs=1e-6)
    assert pixel_signature(images).shape == (3, 2 * 16 * 16)
    assert not pixel_signature(np.ones((1, 1, 16, 16))).any()


def test_a_single_cell_is_refused():
    one = np.ones((1, 4))
    with pytest.raises(ValueError, match="two at least"):
        identity_retrieval(one, one, blocks=Blocks(np.zeros(1, int), "wells"), **DRAWS)
