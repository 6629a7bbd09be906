"""What the stages that fit a denoiser share: cells in memory, the training engine, and a grid of samples to look at."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cellbridge import processes
from cellbridge.assembly import ModelCard, build_sampler, build_schedule, guided
from cellbridge.config import DenoiserFitConfig, ObjectiveConfig
from cellbridge.data.dataset import BatchSource, CellData
from cellbridge.data.store import Store
from cellbridge.diffusion.denoiser import Denoiser, NetworkDenoiser
from cellbridge.diffusion.fitting import ImportanceLoss, Noised, noised_batches, reported, squared_error, variational
from cellbridge.diffusion.importance import ImportanceTimes
from cellbridge.diffusion.monitors import range_warning
from cellbridge.diffusion.samplers import Sampler
from cellbridge.diffusion.schedule import Schedule
from cellbridge.errors import ConfigError
from cellbridge.networks.condition_monitor import condition_warning
from cellbridge.plots.composite import contrast_limits
from cellbridge.plots.montage import montage
from cellbridge.runs import RunDir, begin, fingerprint, publish_file
from cellbridge.runtime import autocast, noise_per_image, pick_precision
from cellbridge.settings import binding, dump
from cellbridge.training.checkpoint import as_resume
from cellbridge.training.ema import applied
from cellbridge.training.events import Finished, show
from cellbridge.training.loop import LossOutput, fit
from cellbridge.typing import Images, Labels, Times

_SAMPLES = 6
_NOT_BINDING = ("training", "sampler", "resume", "accept_changes", "device")
"""Settings that a resumed training may change, or that the engine compares by itself."""


def labels_of(names: Iterable[str], conditions: Sequence[str]) -> Tensor:
    """Return the embedding row of each condition name, int64."""
    row = {name: index for index, name in enumerate(conditions)}
    return torch.tensor([row[name] for name in names], dtype=torch.int64)


def batch_source(
    store: Store,
    rows: np.ndarray,
    config: DenoiserFitConfig,
    *,
    conditions: Sequence[str],
    device: torch.device,
    weights: Tensor | None = None,
    sampling: Tensor | None = None,
    plates: Sequence[str] = (),
) -> BatchSource:
    """Hold the cells of `rows` in memory, labelled by embedding row, and order them by (seed, step).

    Parameters
    ----------
    plates : those that the network has tokens of; a label then also says its plate, as `networks.condition_table` does.
    weights, sampling : (row,) or None for alike: of each cell in the loss, and in proportion to which it is drawn.
    """
    labels = labels_of(store.condition_names[rows], conditions)
    if plates:
        labels += len(conditions) * labels_of(store.plates[rows], ("", *plates))
    return BatchSource(
        CellData.load(store, rows, labels=labels, device=device),
        batch_size=config.training.batch_size,
        accumulation=config.training.accumulation,
        seed=config.training.seed,
        augment=config.augment,
        weights=weights,
        sampling=sampling,
    )


def fit_denoiser(
    network: nn.Module,
    source: BatchSource,
    card: ModelCard,
    *,
    config: DenoiserFitConfig,
    run: RunDir,
    inputs: Mapping[str, Path],
    shown: Sequence[str],
    description: str,
    facts: Mapping[str, float] | None = None,
) -> Finished:
    """Train a backbone on the diffusion loss, showing progress, and draw a labelled grid of samples at the end.

    Noise, times and hidden conditions are functions of (seed, step), as the order of the data is. Configuration and
    provenance are written once the run directory is held and a checkpoint to resume from was found to fit.

    Parameters
    ----------
    inputs : what the result depends on, beside the configuration: hashed, and a checkpoint of other inputs is refused.
    shown : the conditions that the sample grid draws.
    facts : numbers of the training data, told when training starts.

    Raises
    ------
    ConfigError, ModelError : the sampler of the grids cannot run on the schedule; told before training and not at its end.
    """
    training, device = config.training, source.data.device
    schedule = build_schedule(card.schedule).to(device)
    sampler = build_sampler(config.sampler)
    learned = card.schedule.variance == "learned_range"
    require_runs(sampler, schedule, learned=learned)
    guided(_Blank(schedule, learned=learned), config.sampler, card)  # what it refuses, it refuses before training
    loss, times = _objective(config, card, schedule, source)
    batches = noised_batches(
        source,
        steps=schedule.steps,
        seed=training.seed,
        condition_dropout=config.condition_dropout,
        device=device,
        accumulation=source.accumulation,
        times=times,
    )
    sums = {name: fingerprint(path) for name, path in inputs.items()}
    events = fit(
        network,
        loss,
        batches,
        config=training,
        run=run,
        identity=sums | binding(config, exclude={*inputs, *_NOT_BINDING, *_unused(config)}),
        device=device,
        resume=as_resume(config.resume),
        accept_changes=config.accept_changes,
    )

    def draw_samples(step: int, ema: Mapping[str, Tensor]) -> None:
        with applied(network, ema), autocast(device, pick_precision(training.precision, device)):
            denoiser = NetworkDenoiser(
                network,
                schedule,
                card.schedule.prediction,
                learned_range=card.schedule.variance == "learned_range",
            )
            rows = [card.row(name) for name in shown]
            shaped = guided(denoiser, config.sampler, card)
            drawn = _samples(shaped, rows, source.data.image_shape, sampler=sampler, device=device)
        _save_grid(dict(zip(shown, drawn, strict=True)), source, card, run.samples / f"step-{step:08d}.png")

    return show(
        events,
        run=run,
        description=description,
        total=training.steps,
        images_per_step=training.batch_size,
        on_start=lambda: begin(run, config=dump(config), seed=training.seed, inputs=inputs),
        on_sample=draw_samples,
        alarm=lambda values: range_warning(values) or condition_warning(values),
        trackers=training.trackers,
        settings=config.model_dump(mode="json"),
        facts=facts,
    )


def _unused(config: DenoiserFitConfig) -> set[str]:
    """Return the settings at a default that changes nothing, which a checkpoint may thus be older than."""
    defaults = {"objective": ObjectiveConfig(), "balance": "weights"}
    return {name for name, default in defaults.items() if getattr(config, name, default) == default}


def _objective(
    config: DenoiserFitConfig, card: ModelCard, schedule: Schedule, source: BatchSource
) -> tuple[Callable[[nn.Module, Noised], LossOutput], Literal["any", "whole"] | ImportanceTimes]:
    """Return the loss that the configuration asks for, and how its times are drawn."""
    wanted, prediction = config.objective, card.schedule.prediction
    wanted.require_fit(card.schedule)
    if wanted.kind == "simple":
        return reported(squared_error(schedule, prediction, min_snr_gamma=wanted.min_snr_gamma)), "any"
    loss = variational(
        schedule,
        prediction,
        objective=wanted.kind,
        bins=source.data.bin_edges,
        learned_range=card.schedule.variance == "learned_range",
        min_snr_gamma=wanted.min_snr_gamma,
        vlb_weight=wanted.vlb_weight,
    )
    if wanted.times == "uniform":
        return reported(loss), "whole"
    if processes.count() > 1:
        raise ConfigError(
            f"objective.times = importance remembers every loss, and {processes.count()} processes would each know their own alone. "
            "Use times: uniform, or one process."
        )
    times = ImportanceTimes(schedule.steps, device=source.data.device)
    return ImportanceLoss(loss, times), times


def _save_grid(samples: Mapping[str, Tensor], source: BatchSource, card: ModelCard, path: Path) -> None:
    """Draw real cells and, below them, the samples of each condition, in one contrast."""
    real = source(0, 0).images[:_SAMPLES].cpu().numpy()
    rows = {"real": real, **{name: images.cpu().numpy() for name, images in samples.items()}}
    figure = montage(rows, card.channels, contrast_limits(real)).get_figure(root=True)
    assert figure is not None
    with publish_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


class _Blank(Denoiser):
    """A denoiser of no network, to learn whether a sampler takes its schedule."""

    def __init__(self, schedule: Schedule, *, learned: bool):
        super().__init__()
        self.schedule = schedule
        self.learned = learned

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return what it is given."""
        return x_t

    def with_fraction(self, x_t: Images, t: Times, labels: Labels) -> tuple[Images, Tensor | None]:
        """Return what it is given, and a fraction where the model will have one."""
        return x_t, x_t if self.learned else None


def require_runs(sampler: Sampler, schedule: Schedule, *, learned: bool) -> None:
    """Raise what the sampler raises on the schedule, by a batch of no images."""
    none = torch.zeros(0, dtype=torch.int64)
    sampler.sample(_Blank(schedule, learned=learned), torch.zeros(0, 1, 1, 1), none, seeds=none)


def _samples(
    denoiser: Denoiser, rows: Sequence[int], shape: tuple[int, ...], *, sampler: Sampler, device: torch.device
) -> tuple[Tensor, ...]:
    """Draw a few images of each embedding row, from the same noise in every row and at every step of the training."""
    seeds = torch.arange(_SAMPLES)
    noise = noise_per_image(seeds, shape, purpose="sample grid").to(device).repeat(len(rows), 1, 1, 1)
    labels = torch.tensor(rows, device=device).repeat_interleave(_SAMPLES)
    images = sampler.sample(denoiser, noise, labels, seeds=seeds.repeat(len(rows)).to(device))
    return images.float().split(_SAMPLES)
