"""Claims about the baselines that know nothing of cells."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cellbridge.baselines.panel import TrainingCells, null_translators
from cellbridge.baselines.trivial import (
    ChannelAffine,
    DenoisedCopy,
    Filter,
    Identity,
    choose_filters,
    fit_mean_shift,
    fit_moments,
)
from cellbridge.conditions import Condition
from cellbridge.errors import ConditionError
from cellbridge.typing import CellBatch

TARGET = Condition("taxol", 1.0)


def _noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _batch(images):
    n = len(images)
    return CellBatch(images, tuple(f"c{i}" for i in range(n)), ("p",) * n, ("DMSO",) * n, torch.arange(n))


@pytest.fixture
def translators():
    images = 0.1 * _noise(0, 40, 2, 16, 16)
    plates = {"control_plates": ["p"] * 20, "target_plates": ["p"] * 20}
    return [
        Identity(),
        ChannelAffine({TARGET: fit_mean_shift(images[:20], images[20:], **plates)}, name="mean shift"),
        ChannelAffine({TARGET: fit_moments(images[:20], images[20:], **plates)}, name="moment matching"),
        DenoisedCopy(choose_filters(images)),
    ]


def test_every_baseline_keeps_cells_apart_and_says_what_it_shows(translators):
    """The same images in another batch, shapes and ids as given, and the global random state untouched."""
    batch, state = _batch(0.1 * _noise(1, 6, 2, 16, 16)), torch.random.get_rng_state()
    for translator in translators:
        whole = translator.translate(batch, target=TARGET)
        alone = translator.translate(_batch(batch.images[:1]), target=TARGET)
        assert torch.allclose(whole.images[:1], alone.images, atol=1e-6), translator.name
        assert whole.images.shape == batch.images.shape
        assert whole.images.dtype == torch.float32
        assert whole.cell_ids == batch.cell_ids
        assert whole.conditions == ("taxol@1",) * 6
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_copy_is_the_cell_itself():
    batch = _batch(_noise(2, 3, 2, 8, 8))
    assert Identity().translate(batch, target=TARGET).images is batch.images


def test_mean_shift_recovers_a_shift_although_plates_differ_in_brightness():
    """Plate q is brighter and holds most of the target; the difference between pooled means would take the plate for the compound."""
    shift = torch.tensor([0.2, -0.1])
    control = torch.cat([0.05 * _noise(3, 90, 2, 8, 8), 0.5 + 0.05 * _noise(4, 10, 2, 8, 8)])
    target = torch.cat([0.05 * _noise(5, 10, 2, 8, 8), 0.5 + 0.05 * _noise(6, 90, 2, 8, 8)]) + shift[:, None, None]
    fitted = fit_mean_shift(
        control, target, control_plates=["p"] * 90 + ["q"] * 10, target_plates=["p"] * 10 + ["q"] * 90
    )
    assert torch.allclose(fitted.shift, shift, atol=5e-3)
    assert torch.equal(fitted.scale, torch.ones(2))


def test_moment_matching_gives_the_targets_moments():
    control, target = 0.1 * _noise(7, 50, 2, 8, 8), 0.3 + 0.2 * _noise(8, 50, 2, 8, 8)
    plates = {"control_plates": ["p"] * 50, "target_plates": ["p"] * 50}
    matched = ChannelAffine({TARGET: fit_moments(control, target, **plates)}, name="moment matching")
    images = matched.translate(_batch(control), target=TARGET).images
    assert images.mean().item() == pytest.approx(target.mean().item(), abs=0.01)
    assert images.std().item() == pytest.approx(target.clamp(-1, 1).std().item(), abs=0.01)


def test_a_control_plate_without_target_cells_changes_nothing_of_the_matched_moments():
    """Plate q, bright and of another spread, holds controls only; pooled over it, the scale would be far too small."""
    control, target = 0.1 * _noise(7, 50, 2, 8, 8), 0.1 + 0.2 * _noise(8, 50, 2, 8, 8)
    far = torch.cat([control, 0.8 + 0.4 * _noise(11, 50, 2, 8, 8)])
    alone = fit_moments(control, target, control_plates=["p"] * 50, target_plates=["p"] * 50)
    with_q = fit_moments(far, target, control_plates=["p"] * 50 + ["q"] * 50, target_plates=["p"] * 50)
    assert torch.equal(alone.scale, with_q.scale)
    assert torch.equal(alone.shift, with_q.shift)
    assert alone.scale.mean().item() == pytest.approx(2.0, rel=0.05)


def test_plates_of_different_brightness_do_not_widen_the_moments():
    """The same cells on a second plate, brighter: within plates, the scale is the one of either."""
    control, target = 0.1 * _noise(12, 50, 1, 8, 8), 0.2 * _noise(13, 50, 1, 8, 8)
    plates = {"control_plates": ["p"] * 50 + ["q"] * 50, "target_plates": ["p"] * 50 + ["q"] * 50}
    both = fit_moments(torch.cat([control, control + 0.5]), torch.cat([target, target + 0.5]), **plates)
    assert both.scale.item() == pytest.approx((target.std() / control.std()).item(), rel=1e-3)


def test_denoisers_are_chosen_on_every_plate():
    """300 clean cells of a first plate and 300 noisy ones: chosen on the first alone, the denoiser would hardly smooth."""
    rng = np.random.default_rng(0)
    clean = gaussian_filter(rng.standard_normal((600, 1, 16, 16)), (0, 0, 2.0, 2.0)).astype(np.float32)
    noisy = clean.copy()
    noisy[300:] += rng.standard_normal((300, 1, 16, 16)).astype(np.float32)
    cells = [TrainingCells(torch.from_numpy(images), ["p"] * len(images)) for images in (noisy, noisy[:300])]
    both, first = (null_translators(part, part, condition=TARGET)[0]["denoised"].filters[0] for part in cells)
    assert both.size > first.size


def test_a_shift_without_a_shared_plate_is_refused():
    images = _noise(9, 2, 1, 8, 8)
    with pytest.raises(ConditionError, match="no plate holds both"):
        fit_mean_shift(images, images, control_plates=["p", "p"], target_plates=["q", "q"])


def test_a_condition_that_was_not_fitted_is_named():
    with pytest.raises(ConditionError, match='nothing was fitted for "taxol@1"'):
        ChannelAffine({}, name="mean shift").translate(_batch(_noise(0, 1, 1, 8, 8)), target=TARGET)


def test_the_chosen_filter_denoises_and_noise_decides_its_strength():
    """Against clean images that the choice never sees: the pick beats the noisy image, and nearly the best of all filters."""
    rng = np.random.default_rng(0)
    clean = np.stack([gaussian_filter(rng.standard_normal((60, 32, 32)), (0, 2.5, 2.5))] * 2, axis=1)
    clean = (clean / clean.std() * 0.3).astype(np.float32)
    noisy = (
        clean + rng.standard_normal(clean.shape).astype(np.float32) * np.array([0.03, 0.3], np.float32)[:, None, None]
    )
    chosen = choose_filters(torch.from_numpy(noisy))
    images = DenoisedCopy(chosen).translate(_batch(torch.from_numpy(noisy)), target=TARGET).images.numpy()
    assert chosen[1].size >= chosen[0].size
    assert ((images - clean) ** 2).mean() < 0.3 * ((noisy - clean) ** 2).mean()


def test_pure_noise_is_smoothed_most():
    chosen = choose_filters(_noise(10, 60, 1, 32, 32))
    assert chosen[0] in (Filter("gaussian", 1.6), Filter("median", 2))
