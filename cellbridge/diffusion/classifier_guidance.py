"""Guidance by the gradient of a classifier that knows noisy images.

References
----------
Dhariwal & Nichol 2021, "Diffusion models beat GANs on image synthesis", arXiv:2105.05233, algorithm 2.
Snell et al. 2017, "Prototypical networks for few-shot learning", arXiv:1703.05175, eq. 2 (classes by distance to embeddings).
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.schedule import Schedule
from cellbridge.typing import Images, Labels, Times

NoisyClassifier = Callable[[Images, Times], Tensor]
"""(x_t, t) → logits (batch, rows), one for each row of the condition embedding."""

_NO_SIGNAL = 1e-6

LEAST_SIGNAL = 0.01
"""Smallest alpha at which a trained classifier's gradient is to be followed: t up to 992 of 1000 on the cosine schedule, and 953 on the linear."""


@final
class ClassifierGuidance(Denoiser):
    """Move the estimate along the gradient of log p(label | x_t).

    epsilon' = epsilon - scale sigma grad, hence x_0' = x_0 + scale (sigma^2 / alpha) grad. With the exact classifier and the
    unconditional denoiser scale 1 is Bayes' rule, the conditional mean. The factor is large at the noisy end (20,291 at the last step
    of the cosine schedule), where an imperfect classifier's gradient is not small enough for it: give `least_signal` (`LEAST_SIGNAL`), below which the estimate is left alone.

    Parameters
    ----------
    classifier : noise-conditional; it is differentiated by its image, under `torch.inference_mode` as well.
    null_label : row that the denoiser is asked for in place of the label (guidance of an unconditional model); None keeps the label.
    target : class of the classifier to go to; None where its classes are the denoiser's rows.
    least_signal : smallest alpha that is guided; by default all that has any signal, as the exact classifier allows.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: NoisyClassifier,
        *,
        scale: float = 1.0,
        null_label: int | None = None,
        target: int | None = None,
        least_signal: float = _NO_SIGNAL,
    ):
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.classifier = classifier
        self.scale = scale
        self.null_label = null_label
        self.target = target
        self.least_signal = least_signal

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the guided estimate of x_0."""
        shown = labels if self.null_label is None else torch.full_like(labels, self.null_label)
        x_0 = self.denoiser(x_t, t, shown)
        if self.scale == 0:
            return x_0
        alpha, sigma = self.schedule.coefficients(t, x_t)
        factor = torch.where(alpha >= self.least_signal, sigma.square() / alpha.clamp_min(self.least_signal), 0.0)
        wanted = labels if self.target is None else torch.full_like(labels, self.target)
        return x_0 + self.scale * factor * log_probability_gradient(self.classifier, x_t, t, wanted)


def log_probability_gradient(classifier: NoisyClassifier, x_t: Images, t: Times, labels: Labels) -> Images:
    """Return the gradient by x_t of each image's log p(label | x_t); each image's own, as the sum over the batch is differentiated."""
    with torch.inference_mode(False), torch.enable_grad():
        image = x_t.detach().clone().requires_grad_()
        chosen = functional.log_softmax(classifier(image, t.clone()), dim=1).gather(1, labels.clone()[:, None])
        return torch.autograd.grad(chosen.sum(), image)[0]


@final
class EmbeddingDistance(nn.Module):
    """A classifier by distance: logits are -|f(x_t, t) - e_row|^2 / (2 temperature^2), for the embeddings e of the conditions.

    A condition without a head of its own, such as a compound that was never trained on, needs an embedding only.

    Parameters
    ----------
    features : (x_t, t) → (batch, features).
    embeddings : (rows, features).
    temperature : a number, or t → (batch,): how far features scatter about their condition's embedding.
    """

    embeddings: Tensor

    def __init__(
        self,
        features: Callable[[Images, Times], Tensor],
        embeddings: Tensor,
        temperature: float | Callable[[Times], Tensor] = 1.0,
    ):
        super().__init__()
        self.features = features
        self.register_buffer("embeddings", embeddings.detach().clone())
        self.temperature = temperature

    def forward(self, x_t: Images, t: Times) -> Tensor:
        """Return logits (batch, rows)."""
        found = self.features(x_t, t)
        squared = (found[:, None, :] - self.embeddings.to(found)[None]).square().sum(2)
        scatter = self.temperature(t)[:, None] if callable(self.temperature) else self.temperature
        return -squared / (2 * scatter**2)


def noisy_logits(classifier: NoisyClassifier, x_0: Images, *, schedule: Schedule, t: Times, epsilon: Images) -> Tensor:
    """Return the logits of images after noise, x_t = alpha x_0 + sigma epsilon.

    Parameters
    ----------
    t, epsilon : from `training_draw`.
    """
    alpha, sigma = schedule.coefficients(t, x_0)
    return classifier(alpha * x_0 + sigma * epsilon, t)


def noisy_classifier_loss(
    classifier: NoisyClassifier, x_0: Images, labels: Labels, *, schedule: Schedule, t: Times, epsilon: Images
) -> Tensor:
    """Return each image's cross-entropy, (batch,), after noise: -log p(label | x_t)."""
    logits = noisy_logits(classifier, x_0, schedule=schedule, t=t, epsilon=epsilon)
    return functional.cross_entropy(logits, labels, reduction="none")
