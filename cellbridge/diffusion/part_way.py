"""A denoiser that starts part of the way to noise, for any sampler: samplers ask the denoiser for its schedule, and this one's ends early."""

from typing import final

from torch import Tensor

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.schedule import Schedule
from cellbridge.errors import ConfigError
from cellbridge.typing import Images, Labels, Times

_FEWEST = 2
"""Steps of the schedule that a solver's grid can be laid on."""


@final
class PartWay(Denoiser):
    """The same denoiser on the first `share` of its schedule: noise ends at t = share T - 1, and all of a sampler's steps lie before it.

    Parameters
    ----------
    share : in (0, 1]; rounded to whole steps of the schedule.

    Raises
    ------
    ConfigError : so small a share that fewer than two steps are left, or not in (0, 1].
    """

    def __init__(self, denoiser: Denoiser, share: float):
        super().__init__()
        self.denoiser = denoiser
        self.schedule = part_of(denoiser.schedule, share)

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the estimate of the denoiser within."""
        return self.denoiser(x_t, t, labels)

    def with_fraction(self, x_t: Images, t: Times, labels: Labels) -> tuple[Images, Tensor | None]:
        """Return the estimate of the denoiser within, and its fraction."""
        return self.denoiser.with_fraction(x_t, t, labels)


def part_of(schedule: Schedule, share: float) -> Schedule:
    """Return the first `share` of a schedule, in whole steps.

    Raises
    ------
    ConfigError : fewer than two steps, or a share outside (0, 1].
    """
    steps = round(share * schedule.steps)
    if not (share <= 1 and steps >= _FEWEST):
        raise ConfigError(
            f"strength = {share:g}: of the schedule's {schedule.steps} steps {steps} are left, expected {_FEWEST} to {schedule.steps}. "
            f"Use {_FEWEST / schedule.steps:g} to 1, or 0 for the cells as they are."
        )
    return Schedule(schedule.alpha_bar[:steps])
