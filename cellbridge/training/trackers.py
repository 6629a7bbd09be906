"""Experiment trackers (Weights & Biases, MLflow, trackio …) through accelerate; none is used unless asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cellbridge.errors import ConfigError, did_you_mean
from cellbridge.runs import RunDir

Track = Callable[[int, Mapping[str, float]], None]
"""(step, values by name) → None."""

_PROJECT = "cellbridge"


def require_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that accelerate does not know, or whose package is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(
                f'training.trackers: there is no tracker "{name}".{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}'
            )
        if name not in available:
            raise ConfigError(
                f'training.trackers: "{name}" needs the package {name}, which is not installed. Run `pip install {name}`, or '
                "leave the tracker out: events.jsonl and TensorBoard have every value."
            )


@contextmanager
def tracked(names: Sequence[str], *, run: RunDir, settings: Mapping[str, Any], after_step: int) -> Iterator[Track]:
    """Open trackers and yield what hands them the values of a step; they are closed in the end, however that comes.

    Call it where accelerate is set up already, in the main process. What a tracker keeps on disk goes under `trackers/` of the run.

    Parameters
    ----------
    settings : the resolved configuration; told under dotted keys.
    after_step : the step that training resumes from; TensorBoard drops what an earlier process logged after it.
    """
    if not names:
        yield lambda step, values: None
        return
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    place = ProjectConfiguration(project_dir=str(run.path), logging_dir=str(run.trackers))
    accelerator = Accelerator(log_with=list(names), project_config=place)
    options = {
        "tensorboard": {"purge_step": after_step + 1},
        "wandb": {"name": run.path.name, "dir": str(run.trackers)},
    }
    run.trackers.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers(_PROJECT, config=flattened(settings), init_kwargs=options)
    try:
        yield lambda step, values: accelerator.log(dict(values), step=step)
    finally:
        for (
            tracker
        ) in accelerator.trackers:  # `end_training` would also end the group of processes, which training still needs
            tracker.finish()


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return nested settings under dotted keys; what is no number, truth value or text becomes text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
