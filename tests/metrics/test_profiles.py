"""Claims about the precision with which generated wells find real ones."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cellbridge.metrics import profiles as metric
from cellbridge.metrics.effects import Sample
from cellbridge.metrics.intervals import Blocks
from cellbridge.metrics.profiles import Profiles, consistency_map, profile_map, split_halves, well_profiles

F, PLATES, CONTROLS, REPLICATES = 50, ("P3", "P4"), 8, 3
ACTIVE, INERT = ("a0", "a1", "a2"), ("i0", "i1", "i2")
DRAWS = {"seed": 0, "null_size": 2000}

needs_copairs = pytest.mark.skipif(metric.missing() is not None, reason=str(metric.missing()))


def directions():
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.8, F) if name in ACTIVE else np.zeros(F) for name in (*ACTIVE, *INERT)}


def wells_of(seed, conditions, effects):
    """Profiles of wells on both plates, one per condition named."""
    rng = np.random.default_rng(seed)
    rows = [(plate, name, f"{plate}/{seed}-{i}") for plate in PLATES for i, name in enumerate(conditions)]
    vectors = np.stack([rng.standard_normal(F) * 0.5 + effects.get(name, 0.0) for _, name, _ in rows])
    columns = (np.array(part, dtype=object) for part in zip(*rows, strict=True))
    return Profiles(vectors, *columns)


@pytest.fixture(scope="module")
def real():
    return wells_of(1, ("DMSO",) * CONTROLS + (*ACTIVE, *INERT) * REPLICATES, directions())


def copies(real):
    """The untouched control wells, said to be every compound."""
    control = real.take(real.conditions == "DMSO")
    parts = [
        Profiles(control.vectors, control.plates, np.full(len(control.wells), name, object), control.wells)
        for name in ("a0", "i0")
    ]
    return Profiles(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


@needs_copairs
def test_precision_of_each_query_is_that_of_scikit_learn(real):
    queries = wells_of(2, ("a0",), {"a0": directions()["a0"] * 0.3})
    found = profile_map(queries, real, control="DMSO", **DRAWS)["a0"]

    def cosine(a, b):
        return b @ a / np.linalg.norm(b, axis=1) / np.linalg.norm(a)

    expected = []
    for vector, plate in zip(queries.vectors, queries.plates, strict=True):
        positive = real.conditions == "a0"
        asked = positive | ((real.conditions == "DMSO") & (real.plates == plate))
        expected.append(average_precision_score(positive[asked], cosine(vector, real.vectors[asked])))
    assert found.precision.value == pytest.approx(np.mean(expected))
    assert (found.n_queries, found.n_positives, found.n_negatives) == (2, 2 * REPLICATES, CONTROLS)


@needs_copairs
def test_planted_actives_are_found_and_inert_ones_are_not(real):
    queries = wells_of(3, (*ACTIVE, *INERT) * 4, directions())
    found = profile_map(queries, real, control="DMSO", **DRAWS)
    for name in ACTIVE:
        assert found[name].precision.value > 0.95
        assert found[name].corrected_p < 0.05
    for name in INERT:
        assert found[name].corrected_p > 0.05
        assert abs(found[name].precision.value - found[name].chance) < 0.2


@needs_copairs
def test_copies_of_the_control_do_not_find_the_target_and_halves_of_it_do(real):
    floor = profile_map(copies(real), real, control="DMSO", **DRAWS)["a0"]
    assert floor.precision.high < 0.8
    assert floor.p > 0.05
    ceiling = profile_map(*split_halves(real, "a0", seed=0), control="DMSO", **DRAWS)["a0"]
    assert ceiling.precision.value > 0.95


@needs_copairs
def test_p_is_never_below_what_so_few_profiles_can_give(real):
    """One positive among nine: perfect in one order of nine, however many orders are drawn."""
    one = real.take((real.conditions == "DMSO") | (np.cumsum(real.conditions == "a0") == 1) & (real.conditions == "a0"))
    queries = wells_of(4, ("a0",), directions())
    found = profile_map(queries, one, control="DMSO", **DRAWS)["a0"]
    assert found.precision.value == 1
    assert found.smallest_p == pytest.approx(1 / 9)
    assert found.p >= found.smallest_p


@needs_copairs
def test_mechanisms_are_found_through_other_compounds_only():
    """Compounds of one mechanism point one way; a compound alone with its mechanism has no positive."""
    shared = directions()["a0"]
    effects = {"a0@1": shared, "b@1": shared, "b@5": shared, "c@1": directions()["a1"], "d@1": directions()["a1"]}
    moa = {"a0@1": "tubulin", "b@1": "tubulin", "b@5": "tubulin", "c@1": "actin", "d@1": "actin", "e@1": "alone"}
    real = wells_of(5, tuple(effects), effects)
    found = consistency_map(wells_of(6, tuple(effects), effects), real, moa, compound_of=lambda name: name[0], **DRAWS)
    assert set(found) == {"tubulin", "actin"}
    assert all(part.precision.value > 0.9 for part in found.values())
    assert consistency_map(real, real.take(real.conditions == "c@1"), moa, compound_of=lambda n: n[0], **DRAWS) == {}


def test_chance_is_the_mean_precision_of_all_orders():
    orders = [np.isin(np.arange(6), places) for places in combinations(range(6), 2)]
    precisions = [average_precision_score(order, -np.arange(6)) for order in orders]
    assert metric._random_precision(2, 6) == pytest.approx(np.mean(precisions))
    assert metric._random_precision(4, 4) == pytest.approx(1)


def test_a_wells_profile_is_its_cells_mean_in_units_of_the_plates_control():
    rng = np.random.default_rng(0)
    plates = np.repeat(["P1", "P2"], 40)
    features = rng.standard_normal((80, 3)) + 10.0 * (plates == "P1")[:, None]
    control = Sample(features, plates, Blocks(np.arange(80), "wells"))
    treated = Sample(features[:4] + features[:40].std(axis=0), plates[:4], Blocks(np.arange(4), "wells"))
    found = well_profiles(treated, ["X"] * 4, ["P1/B01"] * 2 + ["P1/B02"] * 2, control=control)
    assert found.wells.tolist() == ["P1/B01", "P1/B02"]
    residuals = np.concatenate(
        [features[part] - features[part].mean(axis=0) for part in (plates == "P1", plates == "P2")]
    )
    expected = (treated.features[:2].mean(axis=0) - features[:40].mean(axis=0)) / residuals.std(axis=0)
    assert found.vectors[0] == pytest.approx(expected)


def test_without_copairs_nothing_is_computed_and_the_reason_is_given(real, monkeypatch):
    monkeypatch.setattr(metric, "find_spec", lambda name: None)
    assert profile_map(real, real, control="DMSO", **DRAWS) is None
    assert consistency_map(real, real, {}, compound_of=str, **DRAWS) is None
    assert "cellbridge[profiles]" in metric.missing()


def test_halves_part_the_wells_of_every_plate(real):
    first, rest = split_halves(real, "a1", seed=0)
    assert sorted(first.plates.tolist()) in (["P3", "P3", "P4"], ["P3", "P4", "P4"])
    assert set(first.conditions) == {"a1"}
    assert not set(first.wells) & set(rest.wells)
    assert len(first.wells) + (rest.conditions == "a1").sum() == 2 * REPLICATES
    assert split_halves(real.take(real.conditions == "DMSO"), "a1", seed=0) is None
