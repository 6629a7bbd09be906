"""A denoiser that needs no diffusers, and 40 noisy cells of two channels, for tests of the engine on the diffusion loss."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cellbridge.config import TrainingConfig
from cellbridge.data.dataset import BatchSource, CellData
from cellbridge.data.intensity import fit_intensity
from cellbridge.diffusion.fitting import denoising_loss, noised_batches
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.runs import RunDir
from cellbridge.training.loop import fit

CELLS, CHANNELS, SIZE_PX, CONDITIONS = 40, 2, 8, 3


class SmallDenoiser(nn.Module):
    """Two convolutions with the calling convention of diffusers' UNet2DModel."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(5)
            self.conditions = nn.Embedding(CONDITIONS, 8)
            self.inward = nn.Conv2d(CHANNELS, 8, 3, padding=1)
            self.outward = nn.Conv2d(8, CHANNELS, 3, padding=1)

    def forward(self, images: Tensor, t: Tensor, *, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        known = self.conditions(class_labels) + torch.outer(t / 1000, torch.arange(8) / 8).to(images.dtype)
        return (self.outward(torch.nn.functional.silu(self.inward(images) + known[:, :, None, None])),)


def cells() -> CellData:
    counts = np.random.default_rng(0).gamma(2.0, 400.0, (CELLS, CHANNELS, SIZE_PX, SIZE_PX)).astype(np.uint16)
    intensity = fit_intensity({"P1": counts}, channels=("DNA", "ER"), full_scale=65535)
    labels = torch.arange(CELLS) % (CONDITIONS - 1) + 1
    return CellData(counts, plates=["P1"] * CELLS, intensity=intensity, labels=labels)


def source(config: TrainingConfig, **options) -> BatchSource:
    return BatchSource(
        cells(), batch_size=config.batch_size, accumulation=config.accumulation, seed=config.seed, **options
    )


def denoising(run: Path, *, module: nn.Module | None = None, loss=None, sampling: Tensor | None = None, **settings):
    """Return the events of a training on the diffusion loss, as the stages put it together."""
    defaults = {"steps": 12, "batch_size": 8, "log_every": 4, "checkpoint_every": 6, "precision": "fp32"}
    config = TrainingConfig(**{**defaults, **settings})
    schedule = make_schedule("cosine", 1000)
    batches = noised_batches(
        source(config, sampling=sampling),
        steps=schedule.steps,
        seed=config.seed,
        condition_dropout=0.2,
        device=torch.device("cpu"),
        accumulation=config.accumulation,
    )
    return fit(
        module or SmallDenoiser(),
        loss or denoising_loss(schedule, "v"),
        batches,
        config=config,
        run=RunDir(run),
        identity={},
        device=torch.device("cpu"),
    )
