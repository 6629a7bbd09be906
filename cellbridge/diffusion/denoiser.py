"""The joint of the diffusion part: a denoiser gives the mean of x_0; samplers, inversion and guidance see nothing else."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor, nn

from cellbridge.diffusion.prediction import Prediction, require_defined, to_x_0
from cellbridge.diffusion.schedule import Schedule
from cellbridge.diffusion.variance import split_range
from cellbridge.typing import Images, Labels, Times


class Denoiser(nn.Module, ABC):
    """The posterior mean E[x_0 | x_t, condition], under the schedule that x_t was noised with."""

    schedule: Schedule

    @abstractmethod
    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the mean of x_0 for each noisy image.

        Parameters
        ----------
        t : in (-1, T - 1]; fractions are allowed.
        labels : row of the condition embedding.
        """

    def with_fraction(self, x_t: Images, t: Times, labels: Labels) -> tuple[Images, Tensor | None]:
        """Return the mean of x_0 and where each log variance lies between log beta~ (0) and log beta (1); None where nothing says."""
        return self(x_t, t, labels), None


@final
class NetworkDenoiser(Denoiser):
    """A backbone, a schedule and the kind of its prediction.

    Parameters
    ----------
    network : called as `network(x_t, t, class_labels=labels, return_dict=False)[0]`, as diffusers' backbones are.
    learned_range : the network gives twice the channels, the second half its variance (see `variance.split_range`).
    """

    def __init__(self, network: nn.Module, schedule: Schedule, prediction: Prediction, *, learned_range: bool = False):
        super().__init__()
        require_defined(prediction, schedule)
        self.network = network
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.learned_range = learned_range

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the mean of x_0, in the type of `x_t` also where the network computes in a smaller one."""
        return self.with_fraction(x_t, t, labels)[0]

    def with_fraction(self, x_t: Images, t: Times, labels: Labels) -> tuple[Images, Tensor | None]:
        """Return the mean of x_0, and the fraction where the network was trained to give it."""
        alpha, sigma = self.schedule.coefficients(t, x_t)
        output = self.network(x_t, t, class_labels=labels, return_dict=False)[0].to(x_t.dtype)
        fraction = None
        if self.learned_range:
            output, fraction = split_range(output, channels=x_t.shape[1])
        return to_x_0(self.prediction, output, x_t, alpha=alpha, sigma=sigma), fraction
