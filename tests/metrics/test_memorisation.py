"""Claims about copies of training cells: which are found, and who is not accused."""

import numpy as np
import pandas as pd
import pytest
from drawn_cells import Drawn, study
from scipy.stats import binom

from cellbridge.metrics import memorisation as metric
from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.memorisation import blurred, memorisation

DRAWS = {"resamples": 100, "seed": 0}


@pytest.fixture(scope="module")
def world():
    return study(0)


def judged(world: dict[str, Drawn], images, **changed):
    settings = DRAWS | changed
    blocks = (world["source"].blocks, world["real"].blocks)
    return memorisation(images, world["training"].images, world["real"].images, blocks, **settings)


def copies(world, seed=0):
    """Training cells of the target, drawn at random."""
    return world["training"].images[np.random.default_rng(seed).integers(0, 120, 120)]


def turned(images, seed=0):
    ways = np.random.default_rng(seed).integers(0, 8, len(images))
    return np.stack(
        [np.rot90(x, way % 4, (1, 2))[..., :: 1 if way < 4 else -1] for x, way in zip(images, ways, strict=True)]
    )


def some_copies(world):
    """Three copies among ten cells, in every well."""
    copied = (np.arange(120) % 10 < 3)[:, None, None, None]
    return np.where(copied, copies(world), world["counterfactual"].images)


def copies_on_one_plate(world):
    return np.concatenate([copies(world)[:60], world["counterfactual"].images[60:]])


def noisy(images, share, seed=0):
    """Add noise of a share of the images' standard deviation."""
    noise = np.random.default_rng(seed).standard_normal(images.shape)
    return (images + share * images.std() * noise).astype(np.float32)


def test_distance_is_exactly_zero_to_a_copy_however_it_is_turned_and_its_row_is_found(world):
    training = world["training"].images
    for way in range(8):
        images = np.ascontiguousarray(np.rot90(training[:10], way % 4, (2, 3))[..., :: 1 if way < 4 else -1])
        found = metric.nearest_training_cell(images, training)
        assert found.row.tolist() == list(range(10))
        assert found.distance == pytest.approx(0, abs=1e-5)
        assert found.ratio == pytest.approx(0, abs=1e-4)


def test_nearest_agrees_with_scikit_learn_on_all_eight_ways(world):
    from sklearn.neighbors import NearestNeighbors

    images, training = world["real"].images[:20], world["training"].images
    ways = [np.rot90(training, turns, (2, 3)) for turns in range(4)]
    ways += [np.flip(part, 3) for part in ways]
    bank = np.concatenate([metric.pixel_signature(np.ascontiguousarray(part)) for part in ways])
    distance, row = NearestNeighbors(n_neighbors=1).fit(bank).kneighbors(metric.pixel_signature(images))
    found = metric.nearest_training_cell(images, training)
    assert found.row.tolist() == (row[:, 0] % 120).tolist()
    assert found.distance * 3 == pytest.approx(distance[:, 0] ** 2, rel=1e-4)


@pytest.mark.parametrize(
    "plant",
    [
        copies,
        lambda world: turned(copies(world)),
        lambda world: noisy(copies(world), 0.1),
        lambda world: noisy(turned(copies(world)), 0.2),
        lambda world: 0.8 * copies(world) + 0.1,
        lambda world: blurred(copies(world), 1.0),
        some_copies,
        copies_on_one_plate,
    ],
    ids=["copies", "turned", "noisy", "turned and noisy", "other gain", "smoothed", "three of ten", "on one plate"],
)
def test_copies_of_training_cells_are_found(world, plant):
    found = judged(world, plant(world))
    assert found.excess.low > 0
    assert found.copied.value >= 0.29


@pytest.mark.parametrize(
    "honest",
    [
        lambda world: world["counterfactual"].images,
        lambda world: blurred(world["counterfactual"].images, 0.7),
        lambda world: blurred(world["counterfactual"].images, 1.5),
        lambda world: noisy(world["counterfactual"].images, 0.1),
        lambda world: world["real"].images,
        lambda world: world["source"].images,
    ],
    ids=["counterfactual", "denoised", "blurred", "noisy", "held out", "copy of the source"],
)
def test_honest_outputs_are_not_accused(world, honest):
    found = judged(world, honest(world))
    assert found.excess.low <= 0
    assert found.copied.value < 0.1


def test_the_threshold_is_set_by_one_half_of_the_held_out_cells_and_scored_by_the_other(world):
    found = judged(world, copies(world))
    ratios = metric.nearest_training_cell(world["real"].images, world["training"].images).ratio
    assert found.threshold in ratios
    assert found.held_out.n + (ratios >= found.threshold).sum() >= 120
    assert found.held_out.value < 0.1
    assert judged(world, world["real"].images).nearer == pytest.approx(0.5)
    assert found.nearer > 0.99


def test_nothing_can_be_said_with_too_few_cells(world):
    one = Blocks(np.zeros(3, int), "none (one site)")
    few = world["real"].images[:3]
    assert memorisation(few, world["training"].images, few, (one, one), **DRAWS) is None
    with pytest.raises(ValueError, match="square"):
        metric.nearest_training_cell(few[..., :-1], few[..., :-1])


def test_copies_are_found_within_one_site(world):
    one = Blocks(np.zeros(120, int), "none (one site)")
    found = memorisation(copies(world), world["training"].images, world["real"].images, (one, one), **DRAWS)
    assert found.copied.value == 1
    assert found.copied.low is None
    assert found.excess.low > 0.8
    assert found.excess.resampled == "cells"


def test_the_order_of_the_cells_changes_nothing(world):
    order = np.random.default_rng(0).permutation(120)
    images = noisy(copies(world), 0.1)
    blocks = (world["source"].blocks.take(order), world["real"].blocks)
    moved = memorisation(images[order], world["training"].images[order], world["real"].images, blocks, **DRAWS)
    found = judged(world, images)
    assert moved.excess.low == pytest.approx(found.excess.low)
    assert moved.nearest.ratio == pytest.approx(found.nearest.ratio[order], abs=1e-5)


def _crops(folder, plate, compound, n):
    """Read real crops as images in [-1, 1], with their sites."""
    table = pd.read_csv(folder / "cells.csv", dtype=str)
    table = table[(table["Metadata_Plate"] == plate) & (table["Metadata_Compound"] == compound)]
    table = table.iloc[np.random.default_rng(0).permutation(len(table))[:n]]
    counts = np.stack([np.load(folder / path, allow_pickle=False)[2:66, 2:66] for path in table["path"]])
    images = 2 * np.log1p(counts.astype(np.float32) / 500) / np.log1p(65535 / 500) - 1
    sites = np.unique(table["Metadata_Well"] + table["Metadata_Site"], return_inverse=True)[1]
    return np.moveaxis(images, 3, 1), Blocks(sites, "sites (within-well only)")


def test_on_real_cells_turned_noisy_copies_are_found_and_another_plates_cells_are_not_accused(real_data):
    folder = real_data / "bbbc021_cells"
    training, _ = _crops(folder, "Week4_27801", "cyclohexamide", 100)
    held_out, of_held_out = _crops(folder, "Week4_27821", "cyclohexamide", 80)
    controls, of_controls = _crops(folder, "Week4_27821", "DMSO", 80)
    planted = noisy(turned(training[:80]), 0.1)
    found = memorisation(planted, training, held_out, (of_controls, of_held_out), **DRAWS)
    assert found.copied.value > 0.95
    assert found.excess.low > 0
    for images in (controls, blurred(controls, 1.0)):
        assert memorisation(images, training, held_out, (of_controls, of_held_out), **DRAWS).excess.low <= 0


@pytest.mark.slow
def test_honest_outputs_are_accused_no_more_often_than_the_level_allows():
    """60 studies; the accusation is one-sided, so at most 2.5 % of honest models may be accused, give or take the binomial's 99.9 %."""
    accused, missed = {"counterfactual": 0, "denoised": 0, "held out": 0}, 0
    for seed in range(60):
        world = study(seed)
        honest = world["counterfactual"].images
        cases = {"counterfactual": honest, "denoised": blurred(honest, 0.7), "held out": world["control"].images}
        for name, images in cases.items():
            accused[name] += judged(world, images, seed=seed).excess.low > 0
        some = np.concatenate([turned(noisy(copies(world), 0.1))[:24], honest[24:]])
        missed += judged(world, some, seed=seed).excess.low <= 0  # a fifth, in two of six wells
    assert max(accused.values()) <= binom.ppf(0.9995, 60, 0.025)
    assert missed <= 3
