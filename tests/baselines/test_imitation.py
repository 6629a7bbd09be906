"""Claims about the affine imitation of a model, and about how much of a model it is."""

import numpy as np
import pytest
import torch

from cellbridge.baselines.imitation import imitate
from cellbridge.conditions import Condition
from cellbridge.errors import ConditionError
from cellbridge.metrics.affine_share import affine_share
from cellbridge.metrics.intervals import Blocks
from cellbridge.typing import CellBatch

TARGET = Condition.parse("taxol@1")
PLATES = ("P1",) * 12 + ("P2",) * 12
BLOCKS = Blocks(np.arange(24) // 4, "wells")


def _sources():
    return torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5


def _batch(images):
    ids = tuple(map(str, range(len(images))))
    return CellBatch(images, ids, PLATES, ("DMSO",) * len(images), torch.zeros(len(images), dtype=torch.int64))


def _imitated(sources, outputs):
    return imitate(sources, outputs, plates=PLATES, condition=TARGET).translate(_batch(sources), target=TARGET).images


def _share(sources, outputs):
    parts = (part.numpy() for part in (outputs, _imitated(sources, outputs), sources))
    return affine_share(*parts, BLOCKS, resamples=200, seed=0)


def test_what_only_shifts_and_stretches_intensities_plate_by_plate_is_its_own_imitation():
    sources = _sources()
    outputs = torch.cat([0.7 * sources[:12] + 0.1, 1.2 * sources[12:] - 0.2])
    torch.testing.assert_close(_imitated(sources, outputs), outputs, atol=1e-5, rtol=0)
    found = _share(sources, outputs)
    assert found.low == pytest.approx(1, abs=1e-6)


def test_the_imitation_is_the_least_squares_fit():
    sources = _sources()
    outputs = sources.flip(3) * 0.5 + 0.1 * sources
    fitted = imitate(sources, outputs, plates=PLATES, condition=TARGET).maps["P1"]
    for channel in range(3):
        x, y = (part[:12, channel].double().flatten().numpy() for part in (sources, outputs))
        slope, shift = np.polyfit(x, y, 1)
        assert float(fitted.scale[channel]) == pytest.approx(slope, abs=1e-6)
        assert float(fitted.shift[channel]) == pytest.approx(shift, abs=1e-6)


def test_little_of_a_model_that_moves_pixels_is_affine():
    sources = _sources()
    assert _share(sources, sources.flip(3)).high < 0.6


def test_a_copy_changes_nothing_of_which_a_share_could_be_affine():
    assert _share(_sources(), _sources()) is None


def test_another_target_or_another_plate_is_refused():
    sources = _sources()
    fitted = imitate(sources, sources, plates=("P1",) * 24, condition=TARGET)
    with pytest.raises(ConditionError, match="nothing was fitted for plate P2, only for taxol@1"):
        fitted.translate(_batch(sources), target=TARGET)
    with pytest.raises(ConditionError, match='nothing was fitted for "rotenone@1"'):
        imitate(sources, sources, plates=PLATES, condition=TARGET).translate(
            _batch(sources), target=Condition.parse("rotenone@1")
        )
