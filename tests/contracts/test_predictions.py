"""What every prediction keeps, with a variance of its own and without: it says the image, its loss is that of the image, and it trains."""

from typing import Any, get_args

import pytest
import torch

from cellbridge.config import NetworkConfig, ScheduleConfig
from cellbridge.diffusion.denoiser import NetworkDenoiser
from cellbridge.diffusion.objective import diffusion_loss
from cellbridge.diffusion.prediction import CONVERSIONS, Prediction, target
from cellbridge.diffusion.schedule import Schedule, make_schedule
from cellbridge.errors import ConfigError, ModelError
from cellbridge.networks.unet import build_unet

PREDICTIONS: dict[str, tuple[Prediction, bool]] = {
    "epsilon": ("epsilon", False),
    "x_0": ("x_0", False),
    "v": ("v", False),
    "epsilon, learned range": ("epsilon", True),
    "x_0, learned range": ("x_0", True),
    "v, learned range": ("v", True),
}
SCHEDULES = {
    "linear": make_schedule("linear", 1000),
    "cosine": make_schedule("cosine", 1000),
    "linear, blank at its end": make_schedule("linear", 1000, zero_terminal_snr=True),
}
WEIGHTS = {
    "epsilon": lambda snr: snr,
    "x_0": torch.ones_like,
    "v": lambda snr: snr + 1,
}
"""|d output|^2 / |d x_0|^2, of the same error of the image."""
DIFFUSERS = {"epsilon": "epsilon", "x_0": "sample", "v": "v_prediction"}
TIMES = torch.tensor([-0.5, 0.0, 120.25, 500.0, 900.5, 980.0], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_every_prediction_of_the_configuration_is_here():
    fields = ScheduleConfig.model_fields
    assert {kind for kind, _ in PREDICTIONS.values()} == set(get_args(Prediction)) == set(CONVERSIONS)
    assert set(get_args(fields["prediction"].annotation)) == set(CONVERSIONS) == set(WEIGHTS) == set(DIFFUSERS)
    assert set(get_args(fields["variance"].annotation)) == {"fixed", "learned_range"}
    assert {learned for _, learned in PREDICTIONS.values()} == {False, True}


@pytest.fixture(params=PREDICTIONS)
def chosen(request) -> tuple[Prediction, bool]:
    return PREDICTIONS[request.param]


@pytest.fixture(params=SCHEDULES)
def schedule(request, chosen) -> Schedule:
    if chosen[0] == "epsilon" and SCHEDULES[request.param].zero_terminal_snr:
        pytest.skip("refused, as test_epsilon_without_signal_is_refused says")
    return SCHEDULES[request.param]


class Told:
    """A network that gives what it was told, and twice the channels where its variance is learned."""

    def __init__(self, output: torch.Tensor, *, learned: bool):
        self.output = torch.cat([output, torch.full_like(output, 0.5)], 1) if learned else output

    def __call__(self, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (self.output,)


def drawn(schedule: Schedule) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x_0, epsilon, error = torch.randn(3, 6, 2, 4, 4, dtype=torch.float64, generator=generator).unbind()
    alpha, sigma = schedule.coefficients(TIMES, x_0)
    return x_0, epsilon, error, alpha, sigma


def denoised(chosen: tuple[Prediction, bool], schedule: Schedule, x_0: torch.Tensor, epsilon: torch.Tensor) -> Any:
    kind, learned = chosen
    alpha, sigma = schedule.coefficients(TIMES, x_0)
    network: Any = Told(target(kind, x_0, epsilon, alpha=alpha, sigma=sigma), learned=learned)
    denoiser = NetworkDenoiser(network, schedule, kind, learned_range=learned)
    return denoiser.with_fraction(alpha * x_0 + sigma * epsilon, TIMES, LABELS)


def test_a_network_that_predicts_its_target_gives_the_image_and_its_variance(chosen, schedule):
    x_0, epsilon, *_ = drawn(schedule)
    found, fraction = denoised(chosen, schedule, x_0, epsilon)
    assert torch.allclose(found, x_0, atol=1e-10)
    if chosen[1]:
        assert torch.equal(fraction, torch.full_like(x_0, 0.75))
    else:
        assert fraction is None


def test_an_average_of_predictions_says_the_average_of_images(chosen, schedule):
    """At one x_t each prediction is affine in x_0, so that the network of least squared error gives the mean of x_0 in all of them."""
    kind, learned = chosen
    x_0, epsilon, error, alpha, sigma = drawn(schedule)
    x_t = alpha * x_0 + sigma * epsilon
    images = (x_0, x_0 + 0.3 * error)
    outputs = [target(kind, image, (x_t - alpha * image) / sigma, alpha=alpha, sigma=sigma) for image in images]
    network: Any = Told((outputs[0] + outputs[1]) / 2, learned=learned)
    found = NetworkDenoiser(network, schedule, kind, learned_range=learned)(x_t, TIMES, LABELS)
    assert torch.allclose(found, (images[0] + images[1]) / 2, atol=1e-9)


def test_the_loss_of_a_wrong_image_is_its_error_times_the_prediction_s_weight(chosen, schedule):
    """|d epsilon|^2 = SNR |d x_0|^2 and |d v|^2 = (SNR + 1) |d x_0|^2."""
    kind, _ = chosen
    x_0, epsilon, error, alpha, sigma = drawn(schedule)
    x_t, wrong = alpha * x_0 + sigma * epsilon, x_0 + 0.1 * error
    output = target(kind, wrong, (x_t - alpha * wrong) / sigma, alpha=alpha, sigma=sigma)
    found = diffusion_loss(
        Told(output, learned=False), x_0, LABELS, schedule=schedule, prediction=kind, t=TIMES, epsilon=epsilon
    )
    weight = WEIGHTS[kind](schedule.log_snr(TIMES).exp())
    assert torch.allclose(found.per_image, weight * (wrong - x_0).square().mean((1, 2, 3)), rtol=1e-9)


def test_the_image_is_that_of_diffusers_scheduler(chosen):
    from diffusers import DDIMScheduler

    kind, learned = chosen
    x_0, epsilon, error, alpha, sigma = drawn(SCHEDULES["cosine"])
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type=DIFFUSERS[kind], clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(1000)
    x_t, output = alpha * x_0 + sigma * epsilon, target(kind, x_0, epsilon, alpha=alpha, sigma=sigma) + 0.1 * error
    network: Any = Told(output, learned=learned)
    ours = NetworkDenoiser(network, SCHEDULES["cosine"], kind, learned_range=learned)(x_t, TIMES, LABELS)
    for row, t in ((1, 0), (3, 500), (5, 980)):
        step = scheduler.step(output[row : row + 1], t, x_t[row : row + 1])
        assert torch.allclose(step.pred_original_sample[0], ours[row], rtol=1e-4, atol=1e-4)


def test_epsilon_without_signal_is_refused(chosen):
    kind, learned = chosen
    blank: Any = (Told(torch.zeros(1, 1, 1, 1), learned=learned), SCHEDULES["linear, blank at its end"], kind)
    if kind == "epsilon":
        with pytest.raises(ConfigError, match="says nothing"):
            NetworkDenoiser(*blank, learned_range=learned)
    else:
        NetworkDenoiser(*blank, learned_range=learned)


def network_denoiser(kind: Prediction, learned: bool) -> NetworkDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_unet(
            NetworkConfig(widths=(8, 16), attention_levels=(1,)),
            channels=2,
            size_px=8,
            conditions=3,
            out_channels=4 if learned else 2,
        )
    return NetworkDenoiser(network, SCHEDULES["linear"], kind, learned_range=learned)


def noisy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1)), TIMES.float(), LABELS


def whole(denoiser: NetworkDenoiser, *inputs: torch.Tensor) -> torch.Tensor:
    """Return the image and, where there is one, the fraction beside it."""
    x_0, fraction = denoiser.with_fraction(*inputs)
    return x_0 if fraction is None else torch.cat([x_0, fraction], 1)


def test_an_image_depends_neither_on_its_batch_nor_on_the_random_state_and_leaves_it(chosen):
    denoiser, inputs = network_denoiser(*chosen), noisy()
    state = torch.get_rng_state()
    with torch.no_grad():
        together = whole(denoiser, *inputs)
        alone = torch.cat([whole(denoiser, *(part[i : i + 1] for part in inputs)) for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_parameter_receives_a_gradient_and_the_variance_none_of_the_image_s(chosen):
    denoiser, inputs = network_denoiser(*chosen), noisy()
    whole(denoiser, *inputs).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())
    denoiser.zero_grad()
    denoiser(*inputs).square().mean().backward()
    last = dict(denoiser.named_parameters())["network.conv_out.weight"].grad
    assert last is not None
    assert last[:2].abs().sum() > 0
    assert last[2:].abs().sum() == 0


def test_weights_saved_and_loaded_give_the_same_image_bit_for_bit(chosen, tmp_path):
    from safetensors.torch import load_file, save_file

    denoiser, inputs = network_denoiser(*chosen), noisy()
    expected = whole(denoiser, *inputs)
    save_file(denoiser.state_dict(), tmp_path / "weights.safetensors")
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.zero_()
    denoiser.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(whole(denoiser, *inputs), expected)


def test_an_image_has_its_shape_and_type_and_a_network_of_too_few_channels_is_refused(chosen):
    denoiser, inputs = network_denoiser(*chosen), noisy()
    x_0 = denoiser(*inputs)
    assert (x_0.shape, x_0.dtype) == (inputs[0].shape, torch.float32)
    assert torch.isfinite(x_0).all()
    with pytest.raises(ModelError, match="needs 4"):
        NetworkDenoiser(network_denoiser(chosen[0], False).network, denoiser.schedule, chosen[0], learned_range=True)(
            *inputs
        )
