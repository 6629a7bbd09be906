"""Claims about streamed moments and the Fréchet distance."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from cellbridge.metrics.moments import Moments, frechet, frechet_of_moments


def _features(seed, n=120, d=24, *, shift=0.0, scale=1.0):
    """Correlated features with a decaying spectrum, as extractors give them."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((d, d)) / np.sqrt(np.arange(1, d + 1))[:, None]
    return shift + scale * rng.standard_normal((n, d)) @ mixing


def _exactly(mean, covariance, n=200, seed=0):
    """Return rows whose mean and covariance are exactly these."""
    rows = np.random.default_rng(seed).standard_normal((n, len(mean)))
    rows -= rows.mean(axis=0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    return rows @ np.linalg.cholesky(covariance).T + mean


def _with_scipy(a, b):
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real))


def _with_torch_fidelity(a, b):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(torch.from_numpy(part)) for part in (a, b)]
    assert statistics[0]["mu"].dtype == a.dtype
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def test_frechet_of_two_gaussians_is_the_closed_form():
    """Covariances with common eigenvectors V: |m - n|² + Σ (s_i - t_i)²."""
    vectors = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    s, t = np.array([2.0, 1.0, 0.5, 3.0]), np.array([1.0, 4.0, 0.5, 0.1])
    m, n = np.array([1.0, 0.0, 2.0, -1.0]), np.zeros(4)
    first = _exactly(m, vectors @ np.diag(s**2) @ vectors.T)
    second = _exactly(n, vectors @ np.diag(t**2) @ vectors.T, seed=1)
    assert frechet(first, second) == pytest.approx(6 + ((s - t) ** 2).sum(), rel=1e-9)


def test_frechet_of_gaussians_without_common_eigenvectors_is_scipys():
    s, t = (np.cov(_features(seed, n=400, d=6), rowvar=False) for seed in (1, 2))
    first, second = _exactly(np.zeros(6), s), _exactly(np.ones(6), t, seed=1)
    assert frechet(first, second) == pytest.approx(6 + np.trace(s + t - 2 * sqrtm(s @ t).real), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(300, 280, 24), (40, 40, 200), (40, 300, 100), (300, 40, 100), (24, 25, 24)])
def test_frechet_is_scipys_and_torch_fidelitys_for_few_and_many_rows(n, m, d):
    a, b = _features(0, n, d), _features(1, m, d, shift=0.3, scale=1.2)
    found = frechet(a, b)
    assert found == pytest.approx(_with_scipy(a, b), rel=1e-5)
    assert found == pytest.approx(_with_torch_fidelity(a, b), rel=1e-5)


def test_frechet_is_torch_fidelitys_with_its_float32_means():
    """It takes means of float32 features in float32; covariances, in float64, are about the float64 mean on both sides."""
    a, b = (part.astype(np.float32) for part in (_features(0, 200, 64), _features(1, 200, 64, shift=0.3)))
    assert frechet(a, b) == pytest.approx(_with_torch_fidelity(a, b), rel=1e-5)


@pytest.mark.parametrize(("n", "d"), [(10, 50), (60, 50), (51, 50), (50, 50), (500, 7)])
def test_moments_of_batches_are_those_of_all_rows(n, d):
    rows, streamed = _features(3, n, d), Moments()
    for part in np.array_split(rows, 7):
        streamed.add(part)
    assert streamed.n == n
    np.testing.assert_allclose(streamed.mean, rows.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(rows, rowvar=False), rtol=0, atol=1e-11)
    np.testing.assert_allclose(streamed.root().T @ streamed.root(), streamed.covariance, rtol=0, atol=1e-11)
    assert streamed.trace == pytest.approx(np.trace(streamed.covariance), rel=1e-12)


@pytest.mark.parametrize("sizes", [(3, 4), (3, 60), (60, 3), (60, 70), (0, 5), (20, 20)])
def test_merging_is_adding(sizes):
    first, second = (_features(seed, n, 30) for seed, n in enumerate(sizes, 4))
    merged = Moments(first).merge(Moments(second))
    expected = Moments(np.concatenate([first, second]))
    assert merged.low_rank == expected.low_rank
    np.testing.assert_allclose(merged.covariance, expected.covariance, rtol=0, atol=1e-11)


def test_a_common_offset_a_million_times_the_spread_loses_no_digits_that_matter():
    a, b = _features(0, 200, 8), _features(1, 200, 8, scale=1.5)
    assert frechet(a + 1e6, b + 1e6) == pytest.approx(frechet(a, b), rel=1e-6)


def test_the_distance_of_a_set_to_itself_is_zero_and_order_changes_nothing():
    a, b = _features(0, 40, 100), _features(1, 40, 100)
    assert abs(frechet(a, a)) < 1e-6 * Moments(a).trace
    assert frechet(a[::-1], np.roll(b, 3, axis=0)) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)


def test_what_was_measured_before_leaves_no_trace():
    a, b = _features(0, 60, 20), _features(1, 60, 20)
    summary = Moments(a)
    first = frechet_of_moments(summary, Moments(b))
    frechet_of_moments(summary, Moments(_features(5, 60, 20, shift=9)))
    Moments(b).merge(summary)
    assert frechet_of_moments(summary, Moments(b)) == first


def test_a_batch_that_is_overwritten_afterwards_stays_as_it_was():
    buffer, streamed, rows = np.empty((5, 40)), Moments(), _features(2, 20, 40)
    for part in np.split(rows, 4):
        buffer[:] = part
        streamed.add(buffer)
    np.testing.assert_allclose(streamed.covariance, np.cov(rows, rowvar=False), rtol=0, atol=1e-11)


def test_memory_is_that_of_rows_or_of_a_covariance_whichever_is_smaller():
    few, many = Moments(_features(0, 10, 50)), Moments(_features(0, 5000, 50))
    assert few.low_rank
    assert not many.low_rank
    held = [value.nbytes for value in vars(many).values() if isinstance(value, np.ndarray)]
    assert sum(held) <= (50 * 50 + 50) * 8
    assert many._rows is None


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((1, 3)), "a covariance needs two"),
        (np.full((4, 3), np.nan), "not finite"),
        (np.zeros(4), r"shape \(4,\)"),
    ],
)
def test_what_has_no_covariance_is_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        frechet(rows, np.ones((5, 3)))


def test_features_of_two_extractors_are_refused():
    with pytest.raises(ValueError, match="one extractor makes all batches"):
        Moments(np.zeros((4, 3))).add(np.zeros((4, 5)))
