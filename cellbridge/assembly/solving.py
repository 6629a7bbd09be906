"""Solver settings → samplers, inversions and guided denoisers, by the model itself, a weaker self or a classifier."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cellbridge.assembly.bases import Base, Model
from cellbridge.assembly.cards import CONTROL_ROW, NULL_ROW, SPARE, ModelCard
from cellbridge.assembly.classifiers import Guide, load_guide
from cellbridge.assembly.weaker import Weaker, load_weaker
from cellbridge.config import SolverConfig
from cellbridge.diffusion.ancestral import Ddim, Ddpm
from cellbridge.diffusion.classifier_guidance import LEAST_SIGNAL, ClassifierGuidance
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.guidance import (
    Autoguidance,
    ClassifierFreeGuidance,
    DistanceGuidance,
    GuidanceInterval,
    scales_by_distance,
)
from cellbridge.diffusion.inversion import Inversion
from cellbridge.diffusion.multistep import DpmSolverPlusPlus, Pndm
from cellbridge.diffusion.samplers import Flow, Sampler, asked_times
from cellbridge.diffusion.schedule import Schedule
from cellbridge.diffusion.thresholding import Clipping, DynamicThresholding
from cellbridge.errors import ConfigError, ModelError
from cellbridge.networks.conditioning import condition_rows

SAMPLERS: dict[str, Callable[[SolverConfig], Sampler]] = {
    "flow": lambda solver: Flow(solver.steps, solver.order, solver.grid),
    "ddim": lambda solver: Ddim(solver.steps, solver.eta, solver.grid),
    "ddpm": lambda solver: Ddpm(solver.steps, solver.variance, solver.grid),
    "pndm": lambda solver: Pndm(solver.steps, solver.runge_kutta),
    "dpm++": lambda solver: DpmSolverPlusPlus(solver.steps, solver.grid),
}


def build_sampler(solver: SolverConfig) -> Sampler:
    """Build what turns noise into images."""
    return SAMPLERS[solver.method](solver)


def build_inversion(solver: SolverConfig) -> Inversion:
    """Build what turns images into noise: by first order for DDIM, whose sampling it is to undo."""
    order = 1 if solver.method == "ddim" else solver.order
    return Inversion(solver.steps, order, solver.grid, solver.fixed_point, solver.start_noise)


@dataclass(frozen=True)
class Guides:
    """What guides a sampling beside the model itself, opened and held against the base."""

    weaker: Weaker | None = None
    classifier: Guide | None = None

    @property
    def plates(self) -> dict[str, list[str]]:
        """The plates that each has seen."""
        seen = {} if self.weaker is None else {"weaker model": list(self.weaker.card.plates)}
        return seen if self.classifier is None else seen | {"guiding classifier": list(self.classifier.plates)}

    def require(self, conditions: Iterable[str]) -> None:
        """Raise ConditionError where a guide does not know one of the conditions."""
        for condition in conditions:
            for guide in (self.weaker, self.classifier):
                if guide is not None:
                    guide.of(condition)


NO_GUIDES = Guides()


def load_guides(solver: SolverConfig, base: Base) -> Guides:
    """Open the weaker self and the classifier that the settings name.

    Raises
    ------
    CheckpointError, ModelError : as `load_weaker` and `load_guide`.
    """
    return Guides(
        weaker=None if solver.weaker is None else load_weaker(solver.weaker, base),
        classifier=None if solver.classifier is None else load_guide(solver.classifier, base),
    )


def guided_model(model: Model, solver: SolverConfig, guides: Guides = NO_GUIDES) -> Denoiser:
    """Return a condition's denoiser for sampling, as `guided`.

    Raises
    ------
    ConditionError : a guide does not know the condition.
    """
    return guided(model.denoiser, solver, model.card, guides=guides, condition=model.card.conditions[model.row])


def guided(
    denoiser: Denoiser,
    solver: SolverConfig,
    card: ModelCard,
    *,
    guides: Guides = NO_GUIDES,
    condition: str | None = None,
) -> Denoiser:
    """Wrap a denoiser for sampling: in guidance where the scale asks for it, and in a threshold around all of it.

    From the unconditional row it sharpens a condition against all that was trained together; from the control's row it goes further
    along the condition's own effect, which an adapter that was trained briefly falls short of; from a weaker self it leaves out what
    training improved on. A classifier pushes besides.

    Parameters
    ----------
    guides, condition : what guides from outside, and towards which condition; without guides the labels say the condition.
    """
    result = _guidance(denoiser, solver, card, guides=guides, condition=condition)
    if guides.classifier is not None:
        assert condition is not None
        classifier, target = guides.classifier.of(condition)
        result = ClassifierGuidance(
            result, classifier, scale=solver.classifier_scale, target=target, least_signal=LEAST_SIGNAL
        )
    if solver.guidance_interval is not None:
        low, high = solver.guidance_interval
        require_times_within(solver, denoiser.schedule)
        result = GuidanceInterval(result, denoiser, low=low, high=high)
    if solver.threshold == "clip":
        return Clipping(result)
    if solver.threshold == "dynamic":
        return DynamicThresholding(result, percentile=solver.threshold_percentile, largest=solver.threshold_largest)
    return result


def _guidance(
    denoiser: Denoiser, solver: SolverConfig, card: ModelCard, *, guides: Guides, condition: str | None
) -> Denoiser:
    if solver.guidance_scale == 1.0:
        return denoiser
    if guides.weaker is not None:
        assert condition is not None
        weaker, row = guides.weaker.of(condition)
        _require_another(weaker, row, denoiser, card.conditions.index(condition))
        return Autoguidance(denoiser, weaker, solver.guidance_scale, weaker_label=row)
    if solver.guidance_by_distance:
        return DistanceGuidance(denoiser, _scales_of_rows(denoiser, solver.guidance_scale, card), CONTROL_ROW)
    row = CONTROL_ROW if solver.guidance_from == "control" else NULL_ROW
    return ClassifierFreeGuidance(
        denoiser, scale=solver.guidance_scale, null_label=row, rescale=solver.guidance_rescale
    )


def require_times_within(solver: SolverConfig, schedule: Schedule) -> None:
    """Raise ConfigError where the sampler calls at no time of the guidance interval, so that nothing would be guided."""
    assert solver.guidance_interval is not None
    low, high = solver.guidance_interval
    times = asked_times(build_sampler(solver), schedule)
    if not any(low <= t <= high for t in times):
        raise ConfigError(
            f"solver.guidance_interval = [{low:g}, {high:g}]: guides nothing, as the sampler asks at t = {max(times):g} (noise) to "
            f"{min(times):g} and never within it. The interval is in steps of the schedule, of which there are {schedule.steps}."
        )


def _require_another(weaker: Denoiser, row: int, denoiser: Denoiser, own_row: int) -> None:
    """Raise ModelError where a weaker self has the model's own weights, up to rounding: it would cost a call and guide nothing."""
    own, other = denoiser.state_dict(), weaker.state_dict()
    if row != own_row or {n: w.shape for n, w in own.items()} != {n: w.shape for n, w in other.items()}:
        return
    if all(torch.allclose(own[name], other[name].to(own[name]), rtol=1e-5, atol=1e-7) for name in own):
        raise ModelError(
            "solver.weaker: has the very weights of the model that it is to guide, so that nothing would be guided. Give an earlier "
            "checkpoint (`RUN/checkpoints/step-…`), a snapshot of averages, or a smaller network's run."
        )


def _scales_of_rows(denoiser: Denoiser, scale: float, card: ModelCard) -> Tensor:
    """Return a guidance scale for every row of the embedding, 1 for the rows that stand for no condition."""
    embedding = condition_rows(denoiser)
    if embedding is None:
        raise ModelError("guidance_by_distance: the network has no table of condition embeddings. Set it to false.")
    rows = [row for row, name in enumerate(card.conditions) if name not in ("", SPARE)]
    scales = torch.ones(len(card.conditions), device=embedding.device)
    near = scales_by_distance(embedding[rows], scale, reference=rows.index(CONTROL_ROW))
    scales[rows] = near.to(scales)
    return scales
