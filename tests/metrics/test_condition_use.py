"""Claims about whether outputs depend on the condition that was asked for."""

import numpy as np
import pytest

from cellbridge.metrics import condition_use
from cellbridge.metrics.condition_use import Asked
from cellbridge.metrics.effects import Effect, Sample, real_effect
from cellbridge.metrics.intervals import Blocks

F, N = 30, 240
DRAWS = {"resamples": 200, "seed": 0}
WELLS = Blocks(np.arange(N) % 12, "wells")


def world(seed, *, kind, size=0.4):
    """Outputs of one model for A and for B, and real cells of both; `kind` says what the model, or nature, does."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, size, (2, F))
    if kind == "doses":
        b = 0.4 * a

    def real(effect, wells):
        codes = np.arange(N) % wells
        noise = rng.standard_normal((N, F)) + rng.normal(0, 0.1, (wells, F))[codes]
        return Sample(noise + effect, np.full(N, "P"), Blocks(codes, "wells"))

    control, real_a, real_b = real(0, 12), real(a, 8), real(b, 8)
    asked_b = a if kind == "ignores" else b
    noise = rng.normal(0, 0.2, (3, N, F))
    asked = Asked(a + noise[0] - noise[2], asked_b + noise[1] - noise[2], WELLS)
    effects = (real_effect(part, control, **DRAWS) for part in (real_a, real_b))
    return condition_use.swap(asked, *effects, **DRAWS)


def exact(mean):
    mean = np.asarray(mean, float)
    return Effect(mean, np.tile(mean, (DRAWS["resamples"], 1)), N, WELLS)


def test_closed_form_without_noise():
    a, b = np.tile([1.0, 0.0], (N, 1)), np.tile([1.0, 1.0], (N, 1))
    found = condition_use.swap(Asked(a, b, WELLS), exact([2.0, 0.0]), exact([0.0, 2.0]), **DRAWS)
    assert found.cell_cosine.value == pytest.approx(np.sqrt(0.5))
    assert found.cosine.value == pytest.approx(np.sqrt(0.5))
    assert found.real_cosine.value == pytest.approx(0.0)
    assert (found.norm_a.value, found.norm_b.value) == pytest.approx((0.5, np.sqrt(0.5)))
    assert found.contrast.value == pytest.approx(2 / 8)  # <(0, -1), (2, -2)> / |(2, -2)|²


def test_a_model_that_uses_its_condition_has_contrast_one():
    found = world(0, kind="honest")
    assert found.contrast.low < 1 < found.contrast.high
    assert found.contrast.low > 0.5
    assert found.excess.low < 0.1
    assert found.norm_a.low < 1.05
    assert found.norm_a.high > 0.95


def test_a_model_that_ignores_its_condition_has_contrast_zero_and_cosine_one():
    found = world(1, kind="ignores")
    assert found.contrast.low <= 0.02
    assert found.contrast.high < 0.1
    assert found.cosine.value == pytest.approx(1, abs=0.01)
    assert found.excess.low > 0.5


def test_two_doses_of_one_compound_are_near_one_in_the_model_and_in_real_cells():
    found = world(2, kind="doses")
    assert found.cosine.value > 0.95
    assert found.real_cosine.value > 0.8
    assert found.contrast.low > 0  # the doses differ in size, and the model knows it


def test_intervals_of_the_contrast_cover():
    honest = [world(seed, kind="honest", size=0.2).contrast for seed in range(40)]
    ignoring = [world(seed, kind="ignores", size=0.2).contrast for seed in range(40)]
    assert np.mean([part.low <= 1 <= part.high for part in honest]) >= 0.9
    assert np.mean([part.low <= 0 <= part.high for part in ignoring]) >= 0.9


def test_pooled_cosine_weighs_cells_by_their_effects_and_takes_images():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((N, 2, 4, 4))
    same = condition_use.pooled_cosine(a, 3 * a, WELLS, **DRAWS)
    assert (same.value, same.low) == pytest.approx((1, 1))
    opposite = condition_use.pooled_cosine(a, -a, WELLS, **DRAWS)
    assert opposite.value == pytest.approx(-1)
    assert condition_use.pooled_cosine(a, 0 * a, WELLS, **DRAWS) is None


def logits_for(seen, conditions=3):
    return 5.0 * np.eye(conditions)[seen]


def test_cross_condition_matrix_of_a_model_that_knows_one_of_two_targets():
    """Asked for A it makes A in 3 of 4 cells; asked for B it makes A, too."""
    seen = {"A": np.where(np.arange(N) % 4 < 3, 1, 0), "B": np.ones(N, int)}
    found = condition_use.cross_condition(
        {name: logits_for(part) for name, part in seen.items()},
        ("DMSO", "A", "B"),
        dict.fromkeys(("A", "B"), WELLS),
        **DRAWS,
    )
    assert found.shares.tolist() == [[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]]
    assert found.own["A"].value == 0.75
    assert found.margin["A"].value == pytest.approx(-0.25)
    assert (found.own["B"].value, found.margin["B"].value) == (0, 0)
    assert found.to_dict()["asked"] == ["A", "B"]


def test_shuffled_gap_is_zero_where_the_condition_is_ignored():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((N, 3))
    none = condition_use.shuffled_gap(logits, logits, WELLS, target=1, control=0)
    assert (none.hits.value, none.log_odds.value) == (0, 0)
    shifted = logits + [0.0, 3.0, 0.0]
    found = condition_use.shuffled_gap(shifted, logits, WELLS, target=1, control=0)
    assert found.log_odds.value == pytest.approx(3)
    assert found.hits.low > 0


def test_the_order_of_the_cells_changes_nothing():
    rng = np.random.default_rng(2)
    a, b, order = rng.standard_normal((N, F)), rng.standard_normal((N, F)), rng.permutation(N)
    real = exact(rng.standard_normal(F)), exact(rng.standard_normal(F))
    found = condition_use.swap(Asked(a, b, WELLS), *real, **DRAWS)
    moved = condition_use.swap(Asked(a[order], b[order], WELLS.take(order)), *real, **DRAWS)
    assert moved.contrast.low == pytest.approx(found.contrast.low, abs=1e-9)
    assert moved.cell_cosine.high == pytest.approx(found.cell_cosine.high, abs=1e-9)
