"""A condition classifier of noisy images: the classifier of clean ones, told the time by channels of its own.

References
----------
Dhariwal & Nichol 2021, "Diffusion models beat GANs on image synthesis", arXiv:2105.05233, section 4.1.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from cellbridge.networks.classifier import Classifier
from cellbridge.typing import Images, Times

_WAVES = 4


class NoisyClassifier(nn.Module):
    """Logits of x_t at time t.

    The time stands in `_WAVES` further channels, constant over the image: cos(pi k u) for k = 1 … and u = (t + 1) / T.

    Parameters
    ----------
    channels : stains of an image.
    conditions : classes, the rows of the condition embedding that is to be guided.
    steps : T of the noise schedule.
    widths : see `Classifier`.
    """

    def __init__(self, *, channels: int, conditions: int, steps: int, widths: tuple[int, ...] = (16, 32, 64, 64)):
        super().__init__()
        self.settings: dict[str, Any] = {
            "channels": channels,
            "conditions": conditions,
            "steps": steps,
            "widths": list(widths),
        }
        self.steps = steps
        self.classifier = Classifier(channels=channels + _WAVES, conditions=conditions, widths=widths)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the inside of each block in the backward pass."""
        self.classifier.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        """Keep every activation again."""
        self.classifier.disable_gradient_checkpointing()

    def forward(self, x_t: Images, t: Times) -> Tensor:
        """Return logits: (batch, condition)."""
        orders = torch.arange(1, _WAVES + 1, device=x_t.device, dtype=x_t.dtype)
        waves = (math.pi * orders * ((t.to(x_t) + 1) / self.steps)[:, None]).cos()
        shape = (len(x_t), _WAVES, *x_t.shape[2:])
        logits: Tensor = self.classifier(torch.cat([x_t, waves[..., None, None].expand(shape)], dim=1))
        return logits


def build_noisy_classifier(
    *, channels: int, conditions: int, steps: int, widths: tuple[int, ...], seed: int
) -> NoisyClassifier:
    """Build a classifier of noisy images with weights drawn from `seed`, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return NoisyClassifier(channels=channels, conditions=conditions, steps=steps, widths=widths)


@torch.no_grad()
def noisy_logits_of(classifier: NoisyClassifier, x_t: Images, t: float) -> Tensor:
    """Return the logits of images at one time, in float32 on the CPU; the classifier is put in evaluation mode."""
    device = next(classifier.parameters()).device
    times = torch.full((len(x_t),), t, device=device)
    logits: Tensor = classifier.eval()(x_t.to(device), times)
    return logits.float().cpu()
