"""Claims about Fréchet and kernel distances."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from cellbridge.metrics.features import Extractor, extract
from cellbridge.metrics.fid import Distances, distances, frechet_and_kernel, gap_closed, rotate_to_span
from cellbridge.metrics.intervals import Blocks, Estimate


def _closed_form(a, b):
    """|m - n|² + tr(S + T - 2 (S T)^½), with scipy's matrix square root."""
    a, b = a.double().numpy(), b.double().numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real))


def _kernel(a, b):
    """Unbiased MMD² with k(x, y) = (xᵀy / d + 1)³, as a double sum."""
    a, b = a.double().numpy(), b.double().numpy()
    n, m = len(a), len(b)
    aa, bb, ab = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    return (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1)) - 2 * ab.mean()


def _features(seed, n=120, d=24, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _whitened(features):
    centred = features.double() - features.double().mean(dim=0)
    return centred @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(centred.T))).T


def _every_cell(n):
    return Blocks(np.arange(n), "wells")


def test_frechet_of_two_gaussians_is_the_closed_form():
    """Samples whose moments are exact: |m - n|² + Σ (s - t)² for diagonal covariances."""
    a, b = (_whitened(_features(seed, n=200, d=3)) for seed in (0, 1))
    moved = b * torch.tensor([2.0, 3.0, 0.5]) + torch.tensor([1.0, 0.0, 2.0])
    assert frechet_and_kernel(a, moved)[0] == pytest.approx((1 + 4) + (1 + 4 + 0.25), rel=1e-9)


def test_distances_have_jackknife_intervals_over_wells_and_none_over_one_site():
    a, b = _features(0), _features(1, shift=0.3)
    found = distances(a, b, blocks=(Blocks(np.arange(120) // 10, "wells"),) * 2)
    assert found.frechet.low < found.frechet.value < found.frechet.high
    assert found.kernel.low < found.kernel.value < found.kernel.high
    assert found.kernel.n == 120
    single = distances(a, b, blocks=(_every_cell(120), Blocks(np.zeros(120, int), "none (one site)")))
    assert single.frechet.low is None


def test_distances_agree_with_the_definitions():
    a, b = _features(0), _features(1, shift=0.3, scale=1.2)
    frechet, kernel = frechet_and_kernel(a, b)
    assert frechet == pytest.approx(_closed_form(a, b), rel=1e-5)
    assert kernel == pytest.approx(_kernel(a, b), rel=1e-9)


def test_more_features_than_images_give_the_same_distances_in_their_span():
    a, b = _features(0, n=30, d=200), _features(1, n=30, d=200, shift=0.2)
    rotated = rotate_to_span(a, b)
    assert rotated[0].shape[1] == 60
    frechet, kernel = frechet_and_kernel(*rotated, gamma=1 / 200)
    assert frechet == pytest.approx(_closed_form(a, b), rel=1e-5)
    assert kernel == pytest.approx(_kernel(a, b), rel=1e-9)


def test_any_number_of_channels_is_scored_through_the_injected_extractor():
    projection = torch.randn(5 * 8 * 8, 12, generator=torch.Generator().manual_seed(3))
    a, b = (torch.rand(40, 5, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))

    def features(images):
        return images.flatten(1) @ projection

    injected = frechet_and_kernel(a, b, extractor=features, batch_size=7)
    extractor = Extractor("projection", "-", features)
    assert injected == pytest.approx(frechet_and_kernel(extract(extractor, a), extract(extractor, b)), rel=1e-5)
    changed = b.clone()
    changed[:, 4] = 0
    assert frechet_and_kernel(a, changed, extractor=features)[0] > injected[0]


def test_halves_of_one_population_have_kernel_distance_zero_on_average():
    kernels = [frechet_and_kernel(_features(2 * i, n=40), _features(2 * i + 1, n=40))[1] for i in range(40)]
    assert abs(np.mean(kernels)) < 3 * np.std(kernels) / np.sqrt(40)


def test_padding_with_copies_raises_the_kernel_distance():
    real, few = _features(0, n=100), _features(1, n=25)
    assert frechet_and_kernel(real, few.repeat(4, 1))[1] > frechet_and_kernel(real, _features(2, n=100))[1] + 0.02


def test_order_changes_nothing_and_neither_does_what_came_before():
    a, b = _features(0), _features(1, shift=0.5)
    first = frechet_and_kernel(a, b)
    frechet_and_kernel(_features(7, shift=9.0), b)
    assert frechet_and_kernel(a.flip(0), b.roll(3, 0)) == pytest.approx(first, rel=1e-9)


def test_global_random_state_is_left_alone():
    before, before_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    frechet_and_kernel(_features(0), _features(1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (before_numpy == np.random.get_state()[1]).all()  # noqa: NPY002


def test_different_sizes_are_refused():
    with pytest.raises(ValueError, match="at one n only"):
        distances(_features(0, n=10), _features(1, n=11), blocks=(_every_cell(10), _every_cell(11)))


def _apart(value, n=50):
    estimate = Estimate(value, None, None, n, "wells")
    return Distances(estimate, estimate)


def test_the_gap_closed_is_one_at_the_floor_and_zero_at_the_ceiling():
    floor, ceiling = _apart(0.5), _apart(2.5)
    assert gap_closed(floor, floor, ceiling, of="frechet").value == 1.0
    assert gap_closed(ceiling, floor, ceiling, of="kernel").value == 0.0
    assert gap_closed(_apart(1.0), floor, ceiling, of="frechet").value == pytest.approx(0.75)
    assert gap_closed(_apart(1.0), floor, ceiling, of="frechet").low is None
    assert gap_closed(_apart(1.0), ceiling, floor, of="frechet") is None


def test_the_gaps_interval_leaves_a_group_out_of_floor_and_ceiling_at_once():
    """What moves floor and ceiling alike, because both are measured against the same cells, is counted once and not as two draws."""
    still, moving = np.zeros((10, 2)), np.tile(np.linspace(-0.2, 0.2, 10)[:, None], 2)
    model = Distances(_apart(1.5).frechet, _apart(1.5).kernel, (1.5 + still, 1.5 + still))
    floor = Distances(_apart(0.5).frechet, _apart(0.5).kernel, (0.5 + still, 0.5 + moving))
    ceiling = Distances(_apart(2.5).frechet, _apart(2.5).kernel, (2.5 + still, 2.5 + moving))
    found = gap_closed(model, floor, ceiling, of="frechet")
    expected = 1.96 * np.sqrt(0.9 * ((moving[:, 0] / 2) ** 2).sum())  # (1.5 - 0.5 - m) / 2 moves by -m / 2
    assert found.value == pytest.approx(0.5)
    assert found.high - found.value == pytest.approx(expected, rel=1e-4)


def test_four_cells_of_which_three_share_a_well_have_distances_without_an_interval():
    blocks = Blocks(np.array([0, 0, 0, 1]), "sites (within-well only)")
    found = distances(_features(0, n=4), _features(1, n=4), blocks=(blocks, blocks))
    assert found.frechet.value > 0
    assert found.frechet.low is None
