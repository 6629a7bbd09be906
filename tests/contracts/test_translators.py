"""What every translator keeps to, methods and baselines alike."""

import importlib
import inspect
import pkgutil
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_translators import CONTROL, KINDS, PLATES, TAXOL, cells, some

from cellbridge import baselines, translators
from cellbridge.conditions import Condition
from cellbridge.data.intensity import fit_intensity
from cellbridge.errors import ConditionError
from cellbridge.translators.translator import TracedTranslator, Translator

EVERY = pytest.mark.parametrize("name", KINDS)
TRACED = [name for name, kind in KINDS.items() if isinstance(kind.make(), TracedTranslator)]


def test_every_translator_that_there_is_is_held_to_it() -> None:
    found = set()
    for package in (translators, baselines):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            parts = vars(importlib.import_module(module.name)).values()
            found |= {part for part in parts if inspect.isclass(part) and issubclass(part, Translator)}
    assert {part for part in found if not inspect.isabstract(part)} == {type(kind.make()) for kind in KINDS.values()}


@EVERY
def test_only_images_and_conditions_change(name: str) -> None:
    batch = cells()
    result = KINDS[name].make().translate(batch, target=TAXOL)
    assert (result.cell_ids, result.plates) == (batch.cell_ids, batch.plates)
    assert torch.equal(result.seeds, batch.seeds)
    assert result.conditions == ("taxol@1",) * len(batch.cell_ids)
    assert (result.images.shape, result.images.dtype) == (batch.images.shape, torch.float32)


@EVERY
def test_the_batch_is_left_as_it_was(name: str) -> None:
    batch, before = cells(), cells()
    KINDS[name].make().translate(batch, target=TAXOL)
    assert torch.equal(batch.images, before.images)
    assert batch.conditions == before.conditions


@EVERY
def test_an_image_is_the_same_in_another_batch(name: str) -> None:
    """The design allows 1e-3 of the range; what these small models compute row by row differs by rounding."""
    batch, translator = cells(), KINDS[name].make()
    together = translator.translate(batch, target=TAXOL).images
    for rows in ([0], [5], [4, 1], [3, 2, 0, 5, 1, 4]):
        apart = translator.translate(some(batch, rows), target=TAXOL).images
        assert (apart - together[rows]).abs().max().item() <= 1e-5


@EVERY
def test_the_seed_decides_where_there_is_chance_and_nowhere_else(name: str) -> None:
    batch, kind = cells(), KINDS[name]
    one, again = (kind.make().translate(batch, target=TAXOL).images for _ in range(2))
    other = kind.make().translate(replace(batch, seeds=batch.seeds + 1), target=TAXOL).images
    assert torch.equal(one, again)
    assert bool((one != other).flatten(1).any(1).all()) == kind.chance
    assert torch.equal(one, other) == (not kind.chance)


@EVERY
def test_the_global_random_state_is_left_alone(name: str) -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    KINDS[name].make().translate(cells(), target=TAXOL)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.any_target])
def test_a_target_that_it_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(ConditionError, match="taxol@3"):
        KINDS[name].make().translate(cells(), target=Condition("taxol", 3.0))


@EVERY
def test_images_are_finite_and_come_back_from_counts_in_range(name: str) -> None:
    counts = np.random.default_rng(0).gamma(2.0, 300.0, (40, 2, 6, 6)).astype(np.uint16)
    maps = fit_intensity(dict.fromkeys(PLATES, counts), channels=("DNA", "ER"), full_scale=65535)
    batch = cells()
    images = KINDS[name].make().translate(batch, target=TAXOL).images
    assert bool(torch.isfinite(images).all())
    stored, _ = maps.to_counts(images, list(batch.plates))
    back = maps.forward(stored, list(batch.plates))
    assert back.abs().max().item() <= 1
    inside = images.abs() < 0.9
    assert (back - images)[inside].abs().max().item() < 0.05


@pytest.mark.parametrize(
    "name", [name for name in TRACED if name not in ("ddib, fresh", "ddib, prior", "sdedit, none")]
)
def test_a_trajectory_leads_from_the_cell_to_its_translation(name: str) -> None:
    batch, translator = cells(), KINDS[name].make()
    for frames in (2, 4, 99):
        shown = translator.trace(batch, target=TAXOL, frames=frames)
        assert torch.equal(shown.frames[0], batch.images)
        assert torch.equal(shown.frames[-1], translator.translate(batch, target=TAXOL).images)
        assert (shown.times[0], shown.times[-1]) == (0.0, 1.0)
        assert list(shown.times) == sorted(set(shown.times))
        assert 2 <= len(shown.times) == len(shown.frames) <= frames


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("bridge")])
def test_over_a_bridge_the_way_to_the_cells_own_condition_is_none(name: str) -> None:
    batch = cells()
    assert torch.equal(KINDS[name].make().translate(batch, target=CONTROL).images, batch.images)
