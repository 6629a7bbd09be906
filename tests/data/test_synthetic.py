"""The generator keeps its promises: the truth is exact where it is said to be, and nothing depends on anything else."""

from dataclasses import replace

import numpy as np
import pytest

from cellbridge.conditions import Condition
from cellbridge.data.anatomy import CHANNELS, PATCH_PX, Cells, dissect
from cellbridge.data.rendering import MECHANISMS, assemble, render_cells
from cellbridge.data.synthetic import (
    COMPOUNDS,
    Compound,
    compound_named,
    draw_cells,
    draw_chance,
    draw_plate,
    expose,
    generator,
    render_field,
    respond,
    rms_counts,
    squared_errors,
)
from cellbridge.errors import ConditionError

FIELD_PX = 160
PLATE = draw_plate("0001053597806", generator("plate", 3))


def some_cells(seed: int = 0, number: int = 10) -> Cells:
    return draw_cells(generator("cells", seed), number=number, field_px=FIELD_PX)


def subset(cells: Cells, keep: np.ndarray) -> Cells:
    values = {name: getattr(cells, name)[keep] for name in cells.__dataclass_fields__}
    return replace(cells, **values)


def strengths(cells: Cells, **mechanisms: float) -> np.ndarray:
    row = [mechanisms.get(mechanism, 0.0) for mechanism in MECHANISMS]
    return np.tile(np.array(row, np.float32), (len(cells), 1))


def test_hill_curve_is_half_at_ec50_and_rises_with_dose() -> None:
    compound = Compound(ec50_um=0.3, hill=2.0)
    assert compound.occupancy(0.3) == pytest.approx(0.5)
    assert compound.occupancy(0.9) == pytest.approx(9.0 / 10.0)


def test_share_of_responders_is_the_stated_probability() -> None:
    cells = draw_cells(generator("many"), number=30, field_px=256)
    compound, n = COMPOUNDS["taxol"], 4000
    expected = respond(cells, compound, 1.0, chance=np.zeros((len(cells), 2))).probability
    responses = [respond(cells, compound, 1.0, chance=draw_chance(cells, generator("chance", i))) for i in range(n)]
    observed = np.mean([r.responds for r in responses], axis=0)
    assert np.abs(observed - expected).max() < 5 * 0.5 / np.sqrt(n)
    lost = np.mean([r.lost for r in responses])
    assert lost == pytest.approx(compound.loss * compound.occupancy(1.0), rel=0.1)


def test_strength_depends_on_visible_state_and_dose_but_not_on_chance() -> None:
    cells, compound = some_cells(), COMPOUNDS["latrunculin"]
    one, other = (respond(cells, compound, 1.0, chance=draw_chance(cells, generator(i))).strength for i in (1, 2))
    np.testing.assert_array_equal(one, other)
    assert (respond(cells, compound, 0.05, chance=np.zeros((len(cells), 2))).strength <= one).all()


def test_responder_at_a_low_dose_responds_at_a_high_dose() -> None:
    cells = some_cells()
    for i in range(50):
        chance = draw_chance(cells, generator("chance", i))
        low, high = (respond(cells, COMPOUNDS["taxol"], dose, chance=chance).responds for dose in (0.1, 1.0))
        assert not (low & ~high).any()


def test_non_responder_is_exactly_its_control_render() -> None:
    cells = some_cells()
    anatomy = dissect(cells, field_px=FIELD_PX)
    strength = strengths(cells, nucleus=1.0, actin=1.0, mitochondria=1.0, er=1.0, rna=1.0)
    strength[::2] = 0.0
    control, drawn = render_cells(anatomy, strengths(cells)), render_cells(anatomy, strength)
    np.testing.assert_array_equal(drawn[::2], control[::2])
    assert (np.abs(drawn[1::2] - control[1::2]).max(axis=(2, 3)) > 100).all()


def test_fields_share_their_noise_where_nothing_changes() -> None:
    cells = subset(some_cells(), np.array([0, 1]))
    cells = replace(cells, x=np.array([40, 120], np.float32), y=np.array([40, 120], np.float32), clone=np.array([0, 1]))
    strength = strengths(cells, nucleus=1.0, actin=1.0)
    strength[1] = 0.0
    source = render_field(cells, PLATE, field_px=FIELD_PX, noise=generator("noise"))
    drawn = render_field(cells, PLATE, field_px=FIELD_PX, noise=generator("noise"), strength=strength)
    np.testing.assert_array_equal(source[:, 80:, 80:], drawn[:, 80:, 80:])
    assert (source[:, :80, :80] != drawn[:, :80, :80]).any(axis=(1, 2)).any()


def test_lost_cell_leaves_only_background() -> None:
    cells = subset(some_cells(), np.array([0]))
    cells = replace(cells, clone=np.array([0]))
    empty = render_field(cells, PLATE, field_px=FIELD_PX, noise=generator(0), present=np.array([False]))
    nothing = expose(np.zeros((len(CHANNELS), FIELD_PX, FIELD_PX), np.float32), PLATE, noise=generator(0))
    np.testing.assert_array_equal(empty, nothing)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_mechanisms_move_stain_but_conserve_its_amount(mechanism: str) -> None:
    cells = some_cells()
    anatomy = dissect(cells, field_px=FIELD_PX)
    before = render_cells(anatomy, strengths(cells)).sum(axis=(2, 3))
    after = render_cells(anatomy, strengths(cells, **{mechanism: 1.0})).sum(axis=(2, 3))
    np.testing.assert_allclose(after, before, rtol=1e-3)


def test_shrunken_nucleus_is_smaller_with_the_same_dna() -> None:
    cells = some_cells()
    anatomy = dissect(cells, field_px=FIELD_PX)
    dna = CHANNELS.index("DNA")
    before = render_cells(anatomy, strengths(cells))[:, dna]
    after = render_cells(anatomy, strengths(cells, nucleus=1.0))[:, dna]
    area = [(image > 0).sum(axis=(1, 2)) for image in (before, after)]
    assert (area[1] < 0.6 * area[0]).all()
    np.testing.assert_allclose(before.sum(axis=(1, 2)), 6e5 * cells.dna * cells.expression[:, dna], rtol=1e-3)


def test_cell_is_the_same_whoever_else_is_drawn_with_it() -> None:
    cells = some_cells(number=4)
    far = replace(cells, x=np.array([30, 90, 30, 90], np.float32), y=np.array([30, 30, 90, 90], np.float32))
    alone = replace(subset(far, np.array([2])), clone=np.array([0]))
    together = render_cells(dissect(far, field_px=FIELD_PX), strengths(far, er=0.5))[2]
    np.testing.assert_allclose(
        render_cells(dissect(alone, field_px=FIELD_PX), strengths(alone, er=0.5))[0], together, rtol=1e-4, atol=0.5
    )


def test_territories_of_touching_cells_add_up_to_at_most_one() -> None:
    cells = draw_cells(generator("crowd"), number=40, field_px=FIELD_PX)
    anatomy = dissect(cells, field_px=FIELD_PX)
    total = assemble(anatomy, anatomy.territory[:, None] * (anatomy.depth > 0)[:, None], field_px=FIELD_PX)
    assert total.max() < 1.35  # the soft border is a pixel wide, and outlines differ in size
    assert total.max() > 0.9


def test_colonies_keep_apart_and_sisters_touch() -> None:
    cells = draw_cells(generator("positions"), number=25, field_px=256)
    distance = np.hypot(cells.x[:, None] - cells.x, cells.y[:, None] - cells.y) + 1e3 * np.eye(len(cells))
    same = cells.clone[:, None] == cells.clone
    assert distance[~same].min() >= 30 - 1e-3
    assert distance[same].min() >= 20 - 1e-3
    assert np.unique(cells.clone, return_counts=True)[1].max() <= 3
    np.testing.assert_array_equal(cells.phase, cells.phase[cells.clone])
    chance = draw_chance(cells, generator(0))
    np.testing.assert_array_equal(chance[:, 0], chance[cells.clone, 0])


def test_errors_of_the_predictors_match_simulated_chance() -> None:
    cells, compound = some_cells(number=6), COMPOUNDS["taxol"]
    anatomy = dissect(cells, field_px=FIELD_PX)
    response = respond(cells, compound, 1.0, chance=np.ones((len(cells), 2)) * 0.999)
    source, responding = render_cells(anatomy, strengths(cells)), render_cells(anatomy, response.strength)
    plain = replace(PLATE, gain=np.ones(len(CHANNELS), np.float32))
    sums = squared_errors(anatomy, response, plain, source=source, responding=responding)
    own = ((anatomy.depth > 0) & (anatomy.territory > 0.5))[:, None]
    p = response.probability[:, None, None, None]
    bayes = p * responding + (1 - p) * source
    draws = generator("chance").random((500, len(cells))) < response.probability
    simulated = {"bayes": 0.0, "copy": 0.0, "respond": 0.0}
    for responds in draws:
        truth = np.where(responds[:, None, None, None], responding, source)
        for name, guess in (("bayes", bayes), ("copy", source), ("respond", responding)):
            simulated[name] += float((((guess - truth) * own) ** 2).sum()) / len(draws)
    for name, value in simulated.items():
        assert sums[name].sum() == pytest.approx(value, rel=0.15)
    rms = rms_counts([sums, sums])
    assert all(rms["bayes"][c] <= min(rms["copy"][c], rms["respond"][c]) for c in CHANNELS)


def test_counts_are_gain_times_expected_plus_background() -> None:
    flat = np.full((len(CHANNELS), 64, 64), 5000.0, np.float32)
    counts = expose(flat, replace(PLATE, vignetting=0.0), noise=generator(0)).astype(np.float64)
    expected = 5000.0 * PLATE.gain + PLATE.background
    np.testing.assert_allclose(counts.mean(axis=(1, 2)), expected, rtol=2e-3)
    variance = expected * PLATE.counts_per_photon + PLATE.read_noise**2
    np.testing.assert_allclose(counts.var(axis=(1, 2)), variance, rtol=0.1)


def test_render_is_uint16_in_the_order_of_the_channels() -> None:
    image = render_field(some_cells(), PLATE, field_px=FIELD_PX, noise=generator(0))
    assert image.shape == (5, FIELD_PX, FIELD_PX)
    assert image.dtype == np.uint16


def test_cells_fit_their_patches() -> None:
    cells = draw_cells(generator("fit"), number=30, field_px=256)
    anatomy = dissect(cells, field_px=256)
    edge = np.ones((PATCH_PX, PATCH_PX), bool)
    edge[1:-1, 1:-1] = False
    assert (anatomy.depth[:, edge] < 0).all()


def test_unknown_compound_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConditionError, match='Did you mean "taxol"'):
        compound_named(Condition("taxl", 1.0))
    with pytest.raises(ConditionError, match='Write it as "taxol@1"'):
        compound_named(Condition("taxol"))
