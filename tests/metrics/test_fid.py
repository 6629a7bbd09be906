"""Claims about Fréchet and kernel distances."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from cellbridge.metrics.features import Extractor, extract
from cellbridge.metrics.fid import Distances, bias_warning, distances, frechet, frechet_and_kernel, gap_closed
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


def _with_torch_fidelity(a, b):
    """Fréchet and kernel distance (one subset that is the whole set) from the functions behind `torch_fidelity.calculate_metrics`."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = a.double(), b.double()
    frechet = fid_statistics_to_metric(*map(fid_features_to_statistics, (a, b)), verbose=False)
    kernel = kid_features_to_metric(a, b, kid_subset_size=len(a), kid_subsets=1, verbose=False)
    return frechet["frechet_inception_distance"], kernel["kernel_inception_distance_mean"]


def _features(seed, n=120, d=24, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def _every_cell(n):
    return Blocks(np.arange(n), "wells")


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


@pytest.mark.parametrize(("n", "d"), [(120, 24), (30, 200)])
def test_both_distances_are_torch_fidelitys(n, d):
    a, b = _features(0, n, d), _features(1, n, d, shift=0.3, scale=1.2)
    assert frechet_and_kernel(a, b) == pytest.approx(_with_torch_fidelity(a, b), rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (30, 200), (41, 40)])
def test_what_the_jackknife_leaves_out_is_the_distance_of_the_other_cells(n, d):
    """From sums over groups, or computed anew from the rows: the same."""
    a, b = _features(0, n, d), _features(1, n, d, shift=0.3)
    codes = np.arange(n) % 4, np.arange(n) % 13
    first, second = distances(a, b, blocks=(Blocks(codes[0], "wells"), Blocks(codes[1], "wells"))).left_out
    assert (len(first), len(second)) == (4, 10)
    for group in range(4):
        assert first[group] == pytest.approx(frechet_and_kernel(a[codes[0] != group], b), rel=1e-8)
    for group in range(10):
        assert second[group] == pytest.approx(frechet_and_kernel(a, b[codes[1] % 10 != group]), rel=1e-8)


def test_any_number_of_channels_is_scored_through_an_extractor():
    projection = torch.randn(5 * 8 * 8, 12, generator=torch.Generator().manual_seed(3))
    a, b = (torch.rand(40, 5, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    extractor = Extractor("projection", "-", lambda images: images.flatten(1) @ projection)
    changed = b.clone()
    changed[:, 4] = 0
    features = extract(extractor, a, batch_size=7)
    assert frechet(features, extract(extractor, changed)) > frechet(features, extract(extractor, b))


def test_halves_of_one_population_have_kernel_distance_zero_on_average():
    kernels = [frechet_and_kernel(_features(2 * i, n=40), _features(2 * i + 1, n=40))[1] for i in range(40)]
    assert abs(np.mean(kernels)) < 3 * np.std(kernels) / np.sqrt(40)


def _cubic_distance(mean, deviation):
    """MMD² of N(0, 1) and N(mean, deviation²) with k(x, y) = (xy + 1)³: Σ_p C(3, p) (E x^p - E y^p)², a polynomial's moments."""
    variance = deviation**2
    moments = mean, mean**2 + variance, mean**3 + 3 * mean * variance
    return sum(
        factor * (ours - normal) ** 2 for factor, ours, normal in zip((3, 3, 1), moments, (0, 1, 0), strict=True)
    )


def test_a_known_kernel_distance_is_met_on_average_whatever_was_measured_before():
    """Classes far away are scored in between; published evaluators that reset no accumulator report their running mixture."""
    found, far = [], _features(7, n=30, d=1, shift=5.0)
    for i in range(300):
        normal, other = _features(2 * i, n=30, d=1), _features(2 * i + 1, n=30, d=1, shift=0.5, scale=1.2)
        frechet_and_kernel(normal, far)
        found.append(frechet_and_kernel(normal, other)[1])
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - _cubic_distance(0.5, 1.2)) < 3 * error
    assert error < 0.2 * _cubic_distance(0.5, 1.2)


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


def _bounds_and_models(seed, n=100):
    """Draw real cells three times, control cells twice, and score held-out real cells and the untouched control as models."""
    wells = Blocks(np.arange(n) // 5, "wells")
    real = [_features(100 * seed + i, n=n, d=6) for i in range(4)]
    control = [_features(100 * seed + 50 + i, n=n, d=6, shift=0.6, scale=1.3) for i in range(2)]
    floor = distances(real[0], real[1], blocks=(wells, wells))
    ceiling = distances(control[0], real[1], blocks=(wells, wells))
    models = (distances(part, real[2], blocks=(wells, wells)) for part in (real[3], control[1]))
    return floor, ceiling, *models


@pytest.mark.parametrize("of", ["frechet", "kernel"])
def test_held_out_real_cells_close_the_whole_gap_and_the_untouched_control_none_of_it_within_their_intervals(of):
    """(model - floor) / (ceiling - floor) is 0 for held-out real cells and 1 for the control: 20 draws, 95 % intervals."""
    inside = np.zeros((20, 2), dtype=bool)
    for seed in range(20):
        floor, ceiling, real, control = _bounds_and_models(seed)
        for column, (model, closed) in enumerate(((real, 1.0), (control, 0.0))):
            found = gap_closed(model, floor, ceiling, of=of)
            inside[seed, column] = found.low <= closed <= found.high
    assert (inside.sum(axis=0) >= 16).all()  # of 20 at 95 %, fewer have probability 0.003


def test_forty_images_per_class_have_value_n_interval_and_a_warning():
    a, b = _features(0, n=40, d=128), _features(1, n=40, d=128)
    found = distances(a, b, blocks=(Blocks(np.arange(40) // 8, "wells"),) * 2)
    assert found.frechet.n == 40
    assert found.frechet.low < found.frechet.value < found.frechet.high
    assert "40 images for 128 features: the covariances have no full rank" in bias_warning(40, 128)


def test_the_warning_follows_n_and_the_floor():
    assert "mostly bias" in bias_warning(128, 128)
    assert "biased upwards" in bias_warning(1279, 128)
    assert bias_warning(1280, 128) is None
    assert "lie 80 % as far apart" in bias_warning(1280, 128, value=1.0, floor=0.8)
    assert bias_warning(1280, 128, value=1.0, floor=0.4) is None


def test_the_bias_of_few_images_is_what_the_warning_says():
    """Two draws of one Gaussian in 100 dimensions: the true distance is 0."""
    apart = {n: frechet(_features(0, n=n, d=100), _features(1, n=n, d=100)) for n in (50, 400, 4000)}
    assert apart[50] > 40
    assert apart[50] > 4 * apart[400] > 16 * apart[4000]


def test_four_cells_of_which_three_share_a_well_have_distances_without_an_interval():
    blocks = Blocks(np.array([0, 0, 0, 1]), "sites (within-well only)")
    found = distances(_features(0, n=4), _features(1, n=4), blocks=(blocks, blocks))
    assert found.frechet.value > 0
    assert found.frechet.low is None
