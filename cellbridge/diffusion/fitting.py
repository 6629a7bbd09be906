"""What the training engine needs to fit a denoiser: noised batches, and the loss on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cellbridge.diffusion.objective import diffusion_loss
from cellbridge.diffusion.prediction import Prediction
from cellbridge.diffusion.schedule import Schedule
from cellbridge.diffusion.timesteps import TrainingDraw, training_draw
from cellbridge.runtime import generator
from cellbridge.training.loop import LossOutput
from cellbridge.training.slicing import sliced
from cellbridge.typing import Images, Labels


class LabelledImages(Protocol):
    """A training batch, as the data loader gives it."""

    @property
    def images(self) -> Images: ...
    @property
    def labels(self) -> Labels: ...
    @property
    def weights(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Noised:
    """Clean images and the chance of their training step."""

    batch: LabelledImages
    draw: TrainingDraw


def noised_batches(
    source: Callable[[int, int], LabelledImages],
    *,
    steps: int,
    seed: int,
    condition_dropout: float,
    device: torch.device,
    accumulation: int = 1,
) -> Callable[[int, int], Noised]:
    """Return (step, micro-batch) → batch with times, noise and hidden conditions: a pure function, as `source` is.

    The chance of a step is drawn for the whole of it, a function of (seed, step) alone, and handed out in parts, so that
    the numbers do not depend on how many micro-batches the step is cut into.

    Parameters
    ----------
    steps : T of the schedule.
    condition_dropout : probability that an image is shown without its condition (row 0).
    accumulation : micro-batches that `source` cuts a step into.
    """
    drawn: tuple[int, TrainingDraw] | None = None

    def whole(step: int) -> TrainingDraw:
        parts = [source(step, micro) for micro in range(accumulation)]
        images, labels = parts[0].images, parts[0].labels
        if accumulation > 1:
            images, labels = torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts])
        # The 0 stood for the micro-batch once; so trainings that have one keep their numbers.
        chance = generator(device, "diffusion", seed, step, 0)
        return training_draw(images, labels, steps=steps, generator=chance, condition_dropout=condition_dropout)

    def batches(step: int, micro: int) -> Noised:
        nonlocal drawn
        batch = source(step, micro)
        if drawn is None or drawn[0] != step:
            drawn = (step, whole(step))
        size = len(batch.images)
        return Noised(batch, sliced(drawn[1], slice(micro * size, (micro + 1) * size)))

    return batches


def denoising_loss(schedule: Schedule, prediction: Prediction) -> Callable[[nn.Module, Noised], LossOutput]:
    """Return the loss on a noised batch, with its monitors per timestep decile."""

    def loss(network: nn.Module, noised: Noised) -> LossOutput:
        found = diffusion_loss(
            network,
            noised.batch.images,
            noised.draw.labels,
            schedule=schedule,
            prediction=prediction,
            t=noised.draw.t,
            epsilon=noised.draw.epsilon,
            weights=noised.batch.weights,
        )
        return LossOutput(found.loss, found.monitors, found.minima, found.maxima)

    return loss
