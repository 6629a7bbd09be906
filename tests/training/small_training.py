"""A training small enough for tests: dropout, noise from PyTorch's own generators, and data that is a function of the step."""

import hashlib
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from cellbridge.config import TrainingConfig
from cellbridge.runs import RunDir
from cellbridge.runtime import generator
from cellbridge.training.events import Event, show
from cellbridge.training.loop import LossOutput, fit

SETTINGS = {
    "steps": 24,
    "batch_size": 8,
    "accumulation": 2,
    "warmup_steps": 4,
    "learning_rate": 1e-2,
    "log_every": 5,
    "checkpoint_every": 4,
    "ema_decay": 0.9,
    "precision": "fp32",
}


def digest(tensors: dict[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes."""
    return hashlib.sha256(save(tensors)).hexdigest()


def network() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, 1))


def batches(step: int, micro: int) -> Tensor:
    return torch.randn(4, 6, generator=generator("cpu", "test data", step, micro))


def loss(module: nn.Module, batch: Tensor) -> LossOutput:
    errors = (module(batch + 0.1 * torch.randn_like(batch)).squeeze(1) - batch.sum(dim=1)).square()
    low = batch[:, 0] < 0
    return LossOutput(errors.mean(), {"loss/low": (errors[low].sum(), low.sum())})


def events(
    run: Path,
    *,
    module: nn.Module | None = None,
    loss=loss,
    batches=batches,
    resume="auto",
    accept_changes=False,
    identity=None,
    **settings,
):
    return fit(
        module or network(),
        loss,
        batches,
        config=TrainingConfig(**{**SETTINGS, **settings}),
        run=RunDir(run),
        identity={"data": "a" * 64} if identity is None else identity,
        device=torch.device("cpu"),
        resume=resume,
        accept_changes=accept_changes,
    )


def until(run: Path, step: int, **settings) -> list[Event]:
    """Train, and walk away without notice at a step's checkpoint."""
    seen = []
    training = events(run, **settings)
    for event in training:
        seen.append(event)
        if type(event).__name__ == "Saved" and event.step == step:
            training.close()
            break
    return seen


if __name__ == "__main__":

    def slow(step: int, micro: int) -> Tensor:
        time.sleep(float(sys.argv[2]))
        return batches(step, micro)

    directory = Path(sys.argv[1])
    show(events(directory, batches=slow), run=RunDir(directory), description="small", total=24, images_per_step=8)
