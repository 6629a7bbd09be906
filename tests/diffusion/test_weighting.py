import pytest
import torch

from cellbridge.diffusion.objective import squared_error_loss
from cellbridge.diffusion.prediction import target
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.weighting import min_snr_weights

KINDS = ["v", "epsilon", "x_0"]


def weights_at(*times: float, kind: str = "linear", prediction: str = "x_0", **options) -> torch.Tensor:
    schedule = make_schedule(kind, 1000, **options)
    t = torch.tensor(times, dtype=torch.float64)
    return min_snr_weights(schedule, t, prediction=prediction, gamma=5.0)


@pytest.mark.parametrize(("t", "epsilon", "v"), [(100, 0.58570851, 0.52429205), (50, 0.15489695, 0.15024253)])
def test_weights_have_the_published_values(t, epsilon, v):
    assert weights_at(t, prediction="epsilon").item() == pytest.approx(epsilon, abs=5e-9)
    assert weights_at(t, prediction="v").item() == pytest.approx(v, abs=5e-9)
    assert weights_at(t, prediction="x_0").item() == 5.0


@pytest.mark.parametrize(("kind", "crossing"), [("linear", 130), ("cosine", 261)])
def test_the_cut_ends_where_the_signal_to_noise_ratio_falls_below_gamma(kind, crossing):
    before, after = weights_at(crossing - 1, crossing, kind=kind).tolist()
    assert before == 5.0
    assert after < 5.0


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_the_three_predictions_of_one_image_have_the_same_weighted_loss(kind):
    generator = torch.Generator().manual_seed(0)
    x_0, epsilon, error = torch.randn(3, 64, 2, 4, 4, generator=generator, dtype=torch.float64).unbind()
    t = torch.linspace(0, 998, 64, dtype=torch.float64)
    schedule = make_schedule(kind, 1000)
    alpha, sigma = schedule.coefficients(t, x_0)
    x_t, estimate = alpha * x_0 + sigma * epsilon, x_0 + 0.1 * error
    losses = {}
    for prediction in KINDS:
        output = target(prediction, estimate, (x_t - alpha * estimate) / sigma, alpha=alpha, sigma=sigma)
        losses[prediction] = squared_error_loss(
            output,
            x_0,
            x_t,
            epsilon=epsilon,
            t=t,
            schedule=schedule,
            prediction=prediction,
            weights=min_snr_weights(schedule, t, prediction=prediction, gamma=5.0),
        ).loss.item()
    assert losses["v"] == pytest.approx(losses["x_0"], rel=1e-6)
    assert losses["epsilon"] == pytest.approx(losses["x_0"], rel=1e-6)


@pytest.mark.parametrize(("prediction", "ends"), [("x_0", (5.0, 0.0)), ("epsilon", (0.0, 1.0)), ("v", (0.0, 0.0))])
def test_weights_are_finite_at_the_clean_and_at_the_blank_end(prediction, ends):
    found = weights_at(-1, 999, prediction=prediction, zero_terminal_snr=True)
    assert found.tolist() == pytest.approx(ends, abs=1e-12)
