"""Claims about one and the same change for every cell: fitted to real cells, and to what a model did."""

import pytest
import torch

from cellbridge.baselines.one_change import fit_one_change, own_change
from cellbridge.conditions import Condition
from cellbridge.errors import ConditionError
from cellbridge.typing import CellBatch

TARGET = Condition.parse("taxol@1")
PLATES = ("P1",) * 8 + ("P2",) * 8


def _random(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _batch(images, plates=PLATES):
    ids = tuple(map(str, range(len(images))))
    return CellBatch(images, ids, plates, ("DMSO",) * len(images), torch.zeros(len(images), dtype=torch.int64))


def test_a_model_that_adds_one_image_per_plate_is_its_own_mean_change_though_clipped():
    sources = 0.9 * _random(16, 3, 8, 8, seed=0)
    added = {"P1": _random(3, 8, 8, seed=1), "P2": 2.5 * _random(3, 8, 8, seed=2)}
    outputs = (sources + torch.stack([added[plate] for plate in PLATES])).clamp(-1, 1)
    assert (outputs.abs() == 1).float().mean() > 0.2
    found = own_change(sources, outputs, plates=PLATES, condition=TARGET).translate(_batch(sources), target=TARGET)
    torch.testing.assert_close(found.images, outputs, atol=1e-6, rtol=0)


def test_a_model_that_looks_at_the_cell_is_not_its_own_mean_change():
    sources = 0.4 * _random(16, 3, 8, 8, seed=0)
    found = own_change(sources, -sources, plates=PLATES, condition=TARGET).translate(_batch(sources), target=TARGET)
    assert float((found.images + sources).square().mean()) > 0.05


def test_the_change_fitted_to_real_cells_is_that_within_plates():
    control, effect = 0.3 * _random(16, 2, 4, 4, seed=3), 0.3 * _random(2, 4, 4, seed=4)
    plate_shift = torch.tensor([0.2] * 8 + [-0.2] * 8)[:, None, None, None]
    rows = torch.tensor([*range(8), 8, 8, 9, 9, 10, 10, 11, 11])  # other cells of the second plate are drawn twice
    target = control[rows] + effect
    means = {p: control[[i for i, q in enumerate(PLATES) if q == p]].mean(0) for p in ("P1", "P2")}
    drawn = control[rows[8:]].mean(0)
    wanted = effect + 0.5 * (drawn - means["P2"])
    fitted = fit_one_change(
        control + plate_shift, target + plate_shift, control_plates=PLATES, target_plates=PLATES, condition=TARGET
    )
    zero = torch.zeros_like(control)
    torch.testing.assert_close(fitted.translate(_batch(zero), target=TARGET).images[0], wanted, atol=1e-6, rtol=0)


def test_what_was_not_fitted_is_refused():
    images = torch.zeros(16, 1, 2, 2)
    fitted = own_change(images, images, plates=PLATES, condition=TARGET)
    with pytest.raises(ConditionError, match="plate P9"):
        fitted.translate(_batch(images, ("P9",) * 16), target=TARGET)
    with pytest.raises(ConditionError, match="latrunculin@1"):
        fitted.translate(_batch(images), target=Condition.parse("latrunculin@1"))
    with pytest.raises(ConditionError, match="no plate holds both"):
        fit_one_change(images, images, control_plates=("P1",) * 16, target_plates=("P2",) * 16, condition=TARGET)
