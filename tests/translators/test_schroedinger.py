import pytest
import torch
from gaussian_cells import (
    CONTROL,
    NULL,
    REG,
    TAXOL,
    FieldEndpoint,
    batch_of,
    cells,
    field_cells,
    field_spectra,
    part,
    pixel_bridge,
)

from cellbridge.bridge.fields import field_bridge, filtered, spectrum_of, spectrum_uvp
from cellbridge.conditions import Condition
from cellbridge.errors import ConditionError, ConfigError
from cellbridge.translators.schroedinger import Schroedinger, Span


def _moments(images):
    return images.mean().item(), images.std().item()


def test_cells_arrive_at_the_law_of_the_target_with_the_spread_that_the_bridge_gives_one_cell() -> None:
    """Endpoints drawn with their exact spread leave no error at any number of steps."""
    one = cells(1).images
    result = pixel_bridge(step="draw", steps=5).translate(batch_of(one.expand(2000, -1, -1, -1)), target=TAXOL).images
    mean, variance = pixel_bridge().spans[TAXOL].endpoint.bridge.conditional(one.reshape(-1, 1).double())
    assert (result.mean(0).flatten() - mean[:, 0]).abs().max().item() < 0.03
    assert result.var(0).mean().item() == pytest.approx(variance.item(), rel=0.03)
    whole = pixel_bridge(step="draw", steps=5).translate(cells(2000), target=TAXOL).images
    assert _moments(whole) == pytest.approx((0.2, 0.4), abs=0.01)


@pytest.mark.parametrize(
    ("way", "step", "error"), [("sde", "mean", 0.02), ("sde", "euler", 0.02), ("ode", "mean", 0.01)]
)
def test_every_way_of_stepping_ends_at_the_law_of_the_target(way, step, error) -> None:
    result = pixel_bridge(way=way, step=step, steps=40).translate(cells(1500), target=TAXOL).images
    assert _moments(result) == pytest.approx((0.2, 0.4), abs=error)


def test_the_probability_flow_between_gaussians_is_their_monotone_map() -> None:
    batch = cells()
    result = pixel_bridge(way="ode", steps=60).translate(batch, target=TAXOL).images
    assert (result - (0.2 + 0.4 / 0.2 * (batch.images + 0.6))).abs().max().item() < 0.01


def test_the_way_back_ends_at_the_law_of_the_control_and_the_flow_there_and_back_is_the_identity() -> None:
    treated = cells(1500, condition=TAXOL, law=(0.2, 0.4))
    assert _moments(pixel_bridge(steps=40).translate(treated, target=CONTROL).images) == pytest.approx(
        (-0.6, 0.2), abs=0.01
    )
    flow, batch = pixel_bridge(way="ode", steps=60), cells()
    there = flow.translate(batch, target=TAXOL)
    assert (flow.translate(there, target=CONTROL).images - batch.images).abs().max().item() < 0.01


def test_from_one_condition_to_another_the_way_leads_through_the_control() -> None:
    """Whose flow is the composition of both: the monotone map from the one Gaussian to the other."""
    treated = cells(1500, condition=TAXOL, law=(0.2, 0.4))
    assert _moments(pixel_bridge(steps=40).translate(treated, target=NULL).images) == pytest.approx(
        (-0.3, 0.1), abs=0.01
    )
    flow = pixel_bridge(way="ode", steps=60)
    direct = -0.3 + 0.1 / 0.4 * (treated.images - 0.2)
    assert (flow.translate(treated, target=NULL).images - direct).abs().max().item() < 0.01
    through = flow.translate(flow.translate(treated, target=CONTROL), target=NULL)
    assert torch.equal(flow.translate(treated, target=NULL).images, through.images)


def test_between_fields_the_mean_of_many_draws_is_the_filter_of_the_closed_form() -> None:
    """And the law of what the cells become is the target's, at every spatial frequency."""
    a, b = field_spectra(8)
    spans = {TAXOL: Span(FieldEndpoint(a, b, means=(-0.5, 0.1), reg=REG), REG)}
    translator = Schroedinger(spans, CONTROL, steps=40)
    images = field_cells(a, 600, mean=-0.5)
    found = translator.translate(batch_of(images), target=TAXOL).images
    assert spectrum_uvp(spectrum_of(found - 0.1), b, target=b) < 3
    one = translator.translate(batch_of(images[:1].expand(600, -1, -1, -1)), target=TAXOL).images.mean(0)
    expected = 0.1 + filtered(images[:1] + 0.5, field_bridge(a, b, reg=REG).gain)[0]
    assert (one - expected).square().mean().sqrt().item() < 0.02


@pytest.mark.parametrize("condition", [CONTROL, TAXOL])
def test_a_translation_to_the_cells_own_condition_takes_no_way_and_returns_them(condition) -> None:
    batch, translator = cells(condition=condition), pixel_bridge()
    assert torch.equal(translator.translate(batch, target=condition).images, batch.images)
    assert all(span.endpoint.calls == 0 for span in translator.spans.values())


def test_cells_of_several_conditions_in_a_batch_go_each_its_own_way() -> None:
    control, treated = cells(3), cells(3, condition=TAXOL, law=(0.2, 0.4))
    mixed = batch_of(torch.cat([control.images, treated.images]))
    mixed = type(mixed)(
        mixed.images, mixed.cell_ids, mixed.plates, control.conditions + treated.conditions, mixed.seeds
    )
    together = pixel_bridge().translate(mixed, target=NULL).images
    apart = [pixel_bridge().translate(part(mixed, rows), target=NULL).images for rows in (slice(3), slice(3, 6))]
    assert torch.equal(together, torch.cat(apart))


def test_chance_is_one_for_all_ways_forward_and_another_for_the_way_back() -> None:
    class Lost(pixel_bridge().spans[TAXOL].endpoint.__class__):
        """Leads nowhere: what is left of a step is its noise."""

        def mean(self, x, s, direction):
            return torch.zeros_like(x)

    nowhere = {c: Span(Lost((0.0, 1.0), (0.0, 1.0), reg=REG), REG) for c in (TAXOL, NULL)}
    translator = Schroedinger(nowhere, CONTROL, steps=3)
    there = translator.trace(cells(), target=TAXOL, frames=4).frames[1:3]
    other = translator.trace(cells(), target=NULL, frames=4).frames[1:3]
    back = translator.trace(cells(condition=TAXOL), target=CONTROL, frames=4).frames[1:3]
    assert all(torch.equal(a, b) for a, b in zip(there, other, strict=True))
    assert (there[0] - back[0]).abs().min(dim=0).values.max().item() > 0.01


def test_the_more_volatile_the_bridge_the_less_of_the_cell_is_kept() -> None:
    one = batch_of(cells(1).images.expand(200, -1, -1, -1))

    def spread(reg: float) -> float:
        bridge = pixel_bridge()
        endpoint = bridge.spans[TAXOL].endpoint.__class__((-0.6, 0.04), (0.2, 0.16), reg=reg)
        return Schroedinger({TAXOL: Span(endpoint, reg)}, CONTROL).translate(one, target=TAXOL).images.std(0).mean()

    found = [float(spread(reg)) for reg in (0.0025, 0.01, 0.04, 0.16)]
    assert found == sorted(found)
    assert found[-1] > 3 * found[0]


def test_a_trajectory_begins_with_the_cell_ends_with_the_translation_and_says_when() -> None:
    for way, source, target in (("sde", CONTROL, TAXOL), ("ode", TAXOL, CONTROL), ("sde", TAXOL, NULL)):
        batch, translator = cells(condition=source), pixel_bridge(way=way, steps=10)
        shown = translator.trace(batch, target=target, frames=5)
        assert torch.equal(shown.frames[0], batch.images)
        assert torch.equal(shown.frames[-1], translator.translate(batch, target=target).images)
        assert (shown.times[0], shown.times[-1]) == (0.0, 1.0)
        assert list(shown.times) == sorted(set(shown.times))
        assert len(shown.times) == len(shown.frames) == 5


def test_the_middle_of_a_trajectory_through_the_control_is_the_translation_to_it() -> None:
    treated, translator = cells(condition=TAXOL, law=(0.2, 0.4)), pixel_bridge(steps=10)
    shown = translator.trace(treated, target=NULL, frames=3)
    assert shown.times == (0.0, 0.5, 1.0)
    assert torch.equal(shown.frames[1], translator.translate(treated, target=CONTROL).images)


def test_no_trajectory_leads_from_a_condition_to_itself() -> None:
    with pytest.raises(ConfigError, match="no way leads"):
        pixel_bridge().trace(cells(), target=CONTROL, frames=3)


def test_it_says_how_often_it_calls_its_network() -> None:
    for way in ("sde", "ode"):
        for source, legs in ((CONTROL, 1), (TAXOL, 2)):
            translator = pixel_bridge(way=way, steps=7)
            translator.translate(cells(condition=source), target=NULL)
            assert sum(span.endpoint.calls for span in translator.spans.values()) == translator.calls(legs=legs)


@pytest.mark.parametrize(("source", "target"), [(CONTROL, Condition("taxol", 3.0)), (Condition("taxol", 3.0), CONTROL)])
def test_a_condition_without_a_bridge_is_refused_before_any_work(source, target) -> None:
    translator = pixel_bridge()
    with pytest.raises(ConditionError, match='no bridge leads to or from "taxol@3"'):
        translator.translate(cells(condition=source), target=target)
    assert translator.spans[TAXOL].endpoint.calls == 0
