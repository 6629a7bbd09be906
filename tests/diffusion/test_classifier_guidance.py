"""Guidance by a classifier's gradient: Bayes' rule where everything is known, and a classifier that learns under noise."""

import pytest
import torch

from cellbridge.diffusion.classifier_guidance import (
    LEAST_SIGNAL,
    ClassifierGuidance,
    EmbeddingDistance,
    log_probability_gradient,
    noisy_classifier_loss,
)
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.samplers import sample
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.diffusion.timesteps import training_draw
from cellbridge.networks.noisy_classifier import NoisyClassifier

MEANS = torch.tensor([-0.6, 0.4], dtype=torch.float64)
STD = 0.3
T_ALL = [0.0, 3.7, 200.0, 600.0, 990.0]


class TwoClasses(Denoiser):
    """Single pixels of N(mean of their class, STD^2); unconditional, or by label."""

    def __init__(self, share: float = 0.5, *, conditional: bool = False, kind: str = "linear"):
        super().__init__()
        self.schedule = make_schedule(kind, 1000)
        self.log_shares = torch.tensor([share, 1 - share], dtype=torch.float64).log()
        self.conditional = conditional

    def variance(self, t: torch.Tensor) -> torch.Tensor:
        return self.schedule.alpha(t.double()) ** 2 * STD**2 + self.schedule.sigma(t.double()) ** 2

    def logits(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return log p(class) + log N(x_t; alpha mean, alpha^2 STD^2 + sigma^2), up to a constant."""
        alpha = self.schedule.alpha(t.double())[:, None]
        return self.log_shares - (x_t.flatten(1) - alpha * MEANS) ** 2 / (2 * self.variance(t)[:, None])

    def forward(self, x_t, t, labels):
        alpha, sigma = self.schedule.coefficients(t.double(), x_t)
        means = MEANS.view(1, 2, 1, 1)
        each = means + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * means)
        if self.conditional:
            return each[torch.arange(len(labels)), labels][:, None]
        return (self.logits(x_t, t).softmax(1)[:, :, None, None] * each).sum(1, keepdim=True)


def noisy(t: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_t = torch.linspace(-2, 2, 8, dtype=torch.float64).view(8, 1, 1, 1)
    return x_t, torch.full((8,), t, dtype=torch.float64), torch.tensor([0, 1] * 4)


@pytest.mark.parametrize("t", T_ALL)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_exact_classifier_makes_the_conditional_mean_of_the_unconditional_one(t, share):
    """E[x_0 | x_t, y] = E[x_0 | x_t] + sigma^2 / alpha grad log p(y | x_t)."""
    unconditional = TwoClasses(share)
    guided = ClassifierGuidance(unconditional, unconditional.logits)(*noisy(t))
    assert torch.allclose(guided, TwoClasses(conditional=True)(*noisy(t)), atol=1e-9)


@pytest.mark.parametrize("t", T_ALL)
def test_classes_by_distance_to_embeddings_are_exact_for_gaussian_classes_of_one_spread(t):
    """f = x_t / alpha scatters about each class's mean by sqrt(STD^2 + (sigma / alpha)^2)."""
    unconditional = TwoClasses()
    schedule = unconditional.schedule
    classifier = EmbeddingDistance(
        lambda x, t: x.flatten(1) / schedule.alpha(t)[:, None],
        MEANS[:, None],
        lambda t: unconditional.variance(t).sqrt() / schedule.alpha(t),
    )
    guided = ClassifierGuidance(unconditional, classifier)(*noisy(t))
    assert torch.allclose(guided, TwoClasses(conditional=True)(*noisy(t)), atol=1e-9)


def test_scale_zero_is_the_denoiser_bit_for_bit_and_asks_no_classifier():
    def never(x_t, t):
        raise AssertionError

    denoiser = TwoClasses()
    assert torch.equal(ClassifierGuidance(denoiser, never, scale=0.0)(*noisy(300.0)), denoiser(*noisy(300.0)))


def test_an_unconditional_model_is_asked_for_its_null_row_and_the_classifier_for_the_label():
    denoiser = TwoClasses(conditional=True)
    x_t, t, labels = noisy(300.0)
    guided = ClassifierGuidance(denoiser, TwoClasses().logits, null_label=0)(x_t, t, labels)
    gradient = log_probability_gradient(TwoClasses().logits, x_t, t, labels)
    alpha, sigma = denoiser.schedule.coefficients(t, x_t)
    assert torch.allclose(guided, denoiser(x_t, t, torch.zeros_like(labels)) + sigma**2 / alpha * gradient)


def test_where_no_signal_is_left_the_estimate_is_left_alone():
    denoiser = TwoClasses()
    denoiser.schedule = make_schedule("linear", 1000, zero_terminal_snr=True)
    guided = ClassifierGuidance(denoiser, lambda x_t, t: torch.cat([x_t, -x_t], dim=1).flatten(1))
    assert torch.equal(guided(*noisy(999.0)), denoiser(*noisy(999.0)))
    assert torch.isfinite(guided(*noisy(998.0))).all()


def test_a_class_of_its_own_order_is_followed_in_place_of_the_label():
    denoiser, (x_t, t, labels) = TwoClasses(), noisy(400.0)
    flipped = ClassifierGuidance(denoiser, lambda x, t: denoiser.logits(x, t).flip(1), target=1)
    expected = ClassifierGuidance(denoiser, denoiser.logits)(x_t, t, torch.zeros_like(labels))
    assert torch.allclose(flipped(x_t, t, labels), expected, atol=1e-12)


@pytest.mark.parametrize(("t", "guided"), [(953.0, True), (954.0, False)])
def test_a_gradient_is_followed_as_long_as_there_is_the_least_signal(t, guided):
    denoiser = TwoClasses()
    found = ClassifierGuidance(denoiser, denoiser.logits, least_signal=LEAST_SIGNAL)(*noisy(t))
    assert torch.equal(found, denoiser(*noisy(t))) != guided


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_where_they_are_switched_off(mode):
    denoiser = TwoClasses()
    with mode():
        x_t, t, labels = noisy(300.0)
        guided = ClassifierGuidance(denoiser, denoiser.logits)(x_t, t, labels)
    assert torch.allclose(guided, TwoClasses(conditional=True)(*noisy(300.0)), atol=1e-9)


def test_sampling_under_exact_guidance_draws_the_class():
    denoiser = TwoClasses()
    x_T = torch.randn(2000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(2000) % 2
    images = sample(ClassifierGuidance(denoiser, denoiser.logits), x_T, labels, steps=10)
    for label in (0, 1):
        drawn = images[labels == label]
        assert drawn.mean().item() == pytest.approx(MEANS[label].item(), abs=4 * STD / 1000**0.5)
        assert drawn.std().item() == pytest.approx(STD, rel=0.1)


def bright_and_dim(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two-channel images that differ by a bright first channel under label 1."""
    labels = torch.arange(count) % 2
    images = 0.1 * torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed)) - 0.5
    images[:, 0] += 0.6 * labels.view(-1, 1, 1)
    return images, labels


@pytest.fixture(scope="module")
def trained() -> NoisyClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = NoisyClassifier(channels=2, conditions=2, steps=1000, widths=(8, 8))
    schedule = make_schedule("cosine", 1000)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    for step in range(60):
        images, labels = bright_and_dim(64, step)
        draw = training_draw(images, labels, steps=1000, generator=torch.Generator().manual_seed(step))
        loss = noisy_classifier_loss(classifier, images, labels, schedule=schedule, t=draw.t, epsilon=draw.epsilon)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return classifier.requires_grad_(False).eval()


def loss_at(classifier: NoisyClassifier, t: float) -> float:
    images, labels = bright_and_dim(256, 1000)
    epsilon = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    schedule = make_schedule("cosine", 1000)
    return (
        noisy_classifier_loss(classifier, images, labels, schedule=schedule, t=torch.full((256,), t), epsilon=epsilon)
        .mean()
        .item()
    )


def test_a_classifier_trained_under_noise_is_sure_of_clean_images_and_knows_nothing_of_pure_noise(trained):
    assert loss_at(trained, 10.0) < 0.1
    assert 0.5 < loss_at(trained, 999.0) < 1.0  # log 2 = 0.69


def test_the_classifier_follows_the_time_it_is_told(trained):
    images, _ = bright_and_dim(4, 0)
    assert not torch.allclose(trained(images, torch.full((4,), 10.0)), trained(images, torch.full((4,), 700.0)))


def test_its_gradient_brightens_the_channel_that_tells_the_classes_apart(trained):
    images, _ = bright_and_dim(16, 5)
    gradient = log_probability_gradient(trained, images, torch.full((16,), 400.0), torch.ones(16, dtype=torch.int64))
    assert gradient[:, 0].mean() > 3 * gradient[:, 1].mean().abs()


def test_an_image_s_gradient_does_not_depend_on_its_batch(trained):
    images, labels = bright_and_dim(6, 5)
    t = torch.tensor([1.0, 50.0, 300.0, 600.0, 900.0, 999.0])
    together = log_probability_gradient(trained, images, t, labels)
    alone = torch.cat(
        [log_probability_gradient(trained, images[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(6)]
    )
    assert torch.allclose(together, alone, atol=1e-6)
