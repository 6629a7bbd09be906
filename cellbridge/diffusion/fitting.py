"""What the training engine needs to fit a denoiser, or a classifier of noisy images: noised batches, and the loss on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellbridge.diffusion.classifier_guidance import noisy_logits
from cellbridge.diffusion.importance import ImportanceTimes
from cellbridge.diffusion.monitors import band_monitors
from cellbridge.diffusion.objective import DiffusionLoss, diffusion_loss
from cellbridge.diffusion.prediction import Prediction, require_defined
from cellbridge.diffusion.schedule import Schedule
from cellbridge.diffusion.timesteps import TrainingDraw, training_draw
from cellbridge.diffusion.vlb import HYBRID_WEIGHT, Bins, variational_loss
from cellbridge.diffusion.weighting import min_snr_weights
from cellbridge.networks.condition_monitor import MONITOR, condition_over_time
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
    @property
    def rows(self) -> Tensor: ...


@dataclass(frozen=True)
class Noised:
    """Clean images and the chance of their training step.

    Parameters
    ----------
    time_weights : (batch,), 1 / (T p_t) where times were drawn by importance.
    micro : which micro-batch of its step this is.
    """

    batch: LabelledImages
    draw: TrainingDraw
    time_weights: Tensor | None = None
    micro: int = 0


NoisedLoss = Callable[[nn.Module, Noised], DiffusionLoss]


def noised_batches(
    source: Callable[[int, int], LabelledImages],
    *,
    steps: int,
    seed: int,
    condition_dropout: float,
    device: torch.device,
    accumulation: int = 1,
    times: Literal["any", "whole"] | ImportanceTimes = "any",
) -> Callable[[int, int], Noised]:
    """Return (step, micro-batch) → batch with times, noise and hidden conditions: a pure function, as `source` is.

    The chance of a step is drawn for the whole of it, a function of (seed, step) alone, and handed out in parts, so that
    the numbers do not depend on how many micro-batches the step is cut into.

    Parameters
    ----------
    steps : T of the schedule.
    condition_dropout : probability that an image is shown without its condition (row 0).
    accumulation : micro-batches that `source` cuts a step into.
    times : uniform over all real times, over whole ones (as the terms of the variational bound are), or by importance, with which
        the draw is a function of the losses before it, too.
    """
    drawn: tuple[int, Noised] | None = None

    def whole(step: int) -> Noised:
        parts = [source(step, micro) for micro in range(accumulation)]
        images, labels = parts[0].images, parts[0].labels
        if accumulation > 1:
            images, labels = torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts])
        # The 0 stood for the micro-batch once; so trainings that have one keep their numbers.
        chance = generator(device, "diffusion", seed, step, 0)
        draw = training_draw(images, labels, steps=steps, generator=chance, condition_dropout=condition_dropout)
        if times == "any":
            return Noised(parts[0], draw)
        if times == "whole":
            return Noised(parts[0], replace(draw, t=draw.t.ceil()))
        t, weights = times.draw((draw.t + 1) / steps)
        return Noised(parts[0], replace(draw, t=t), weights)

    def batches(step: int, micro: int) -> Noised:
        nonlocal drawn
        batch = source(step, micro)
        if drawn is None or drawn[0] != step:
            drawn = (step, whole(step))
        size = len(batch.images)
        part = slice(micro * size, (micro + 1) * size)
        weights = drawn[1].time_weights
        return Noised(batch, sliced(drawn[1].draw, part), None if weights is None else weights[part], micro)

    return batches


def squared_error(schedule: Schedule, prediction: Prediction, *, min_snr_gamma: float | None = None) -> NoisedLoss:
    """Return L_simple on a noised batch, weighted by min(SNR, gamma) if asked."""
    require_defined(prediction, schedule)

    def loss(network: nn.Module, noised: Noised) -> DiffusionLoss:
        return diffusion_loss(
            network,
            noised.batch.images,
            noised.draw.labels,
            schedule=schedule,
            prediction=prediction,
            t=noised.draw.t,
            epsilon=noised.draw.epsilon,
            weights=_simple_weights(noised, schedule, prediction, min_snr_gamma),
        )

    return loss


def variational(
    schedule: Schedule,
    prediction: Prediction,
    *,
    objective: Literal["vlb", "hybrid"],
    bins: Callable[[Images, Tensor], Bins],
    learned_range: bool,
    min_snr_gamma: float | None = None,
    vlb_weight: float = HYBRID_WEIGHT,
) -> NoisedLoss:
    """Return L_vlb or the hybrid on a noised batch of whole times.

    Parameters
    ----------
    bins : (images, rows) → the edges of the bin of each value.
    """
    require_defined(prediction, schedule)

    def loss(network: nn.Module, noised: Noised) -> DiffusionLoss:
        return variational_loss(
            network,
            noised.batch.images,
            noised.draw.labels,
            objective=objective,
            schedule=schedule,
            prediction=prediction,
            t=noised.draw.t,
            epsilon=noised.draw.epsilon,
            bins=bins(noised.batch.images, noised.batch.rows),
            learned_range=learned_range,
            weights=_simple_weights(noised, schedule, prediction, min_snr_gamma),
            bound_weights=_product(noised.batch.weights, noised.time_weights),
            vlb_weight=vlb_weight,
        )

    return loss


def reported(loss: NoisedLoss) -> Callable[[nn.Module, Noised], LossOutput]:
    """Return a loss as the training engine calls it, with what is watched."""

    def engine_loss(network: nn.Module, noised: Noised) -> LossOutput:
        return _reported(loss(network, noised), network, noised)

    return engine_loss


def denoising_loss(schedule: Schedule, prediction: Prediction) -> Callable[[nn.Module, Noised], LossOutput]:
    """Return L_simple as the training engine calls it."""
    return reported(squared_error(schedule, prediction))


def classifying_loss(schedule: Schedule) -> Callable[[nn.Module, Noised], LossOutput]:
    """Return the cross-entropy of noised images as the training engine calls it; watched are loss and accuracy by decile of t."""

    def engine_loss(network: nn.Module, noised: Noised) -> LossOutput:
        draw, labels = noised.draw, noised.batch.labels
        logits = noisy_logits(network, noised.batch.images, schedule=schedule, t=draw.t, epsilon=draw.epsilon)
        losses = functional.cross_entropy(logits.float(), labels, reduction="none")
        hits = (logits.detach().argmax(dim=1) == labels).to(losses.dtype)
        figures = {"loss": losses.detach(), "accuracy": hits}
        monitors = band_monitors(figures, draw.t, steps=schedule.steps) | {
            "accuracy": (hits.sum(), torch.ones_like(hits).sum())
        }
        weights = noised.batch.weights
        return LossOutput(losses.mean() if weights is None else (weights * losses).mean(), monitors)

    return engine_loss


@final
class ImportanceLoss:
    """A loss as the training engine calls it, which tells the importance of its times, and whose state belongs in checkpoints."""

    def __init__(self, loss: NoisedLoss, times: ImportanceTimes):
        self._loss = loss
        self._times = times

    def __call__(self, network: nn.Module, noised: Noised) -> LossOutput:
        """Return the loss of a micro-batch, and note each image's at its time."""
        found = self._loss(network, noised)
        self._times.note(noised.draw.t, found.per_image, micro=noised.micro)
        return _reported(found, network, noised)

    def state(self) -> dict[str, Tensor]:
        """Return the live tensors that later draws of times depend on."""
        return self._times.state()


def _reported(found: DiffusionLoss, network: nn.Module, noised: Noised) -> LossOutput:
    ratio = condition_over_time(network, noised.draw.t, noised.draw.labels)
    own = {} if ratio is None else {MONITOR: (ratio.sum(), torch.full_like(ratio[0], len(ratio)))}
    return LossOutput(found.loss, {**found.monitors, **own}, found.minima, found.maxima)


def _simple_weights(
    noised: Noised, schedule: Schedule, prediction: Prediction, min_snr_gamma: float | None
) -> Tensor | None:
    if min_snr_gamma is None:
        return noised.batch.weights
    by_time = min_snr_weights(schedule, noised.draw.t, prediction=prediction, gamma=min_snr_gamma)
    return _product(noised.batch.weights, by_time)


def _product(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one * other
