"""What a denoiser believes the image to be, at every time that a solver asks it: the visible side of a way through noise."""

from typing import final

from torch import Tensor

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.typing import Images, Labels, Times


@final
class Watched(Denoiser):
    """The same denoiser, which keeps its estimates of x_0 for the block that looks at them.

    Parameters
    ----------
    denoiser : asked for whole batches at one time each, as solvers do.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.seen: list[tuple[float, Images]] = []
        """(t, estimates), in the order in which they were asked for."""

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the estimate of the denoiser within."""
        x_0 = self.denoiser(x_t, t, labels)
        self.seen.append((float(t[0]), x_0))
        return x_0

    def with_fraction(self, x_t: Images, t: Times, labels: Labels) -> tuple[Images, Tensor | None]:
        """Return the estimate of the denoiser within, and its fraction."""
        x_0, fraction = self.denoiser.with_fraction(x_t, t, labels)
        self.seen.append((float(t[0]), x_0))
        return x_0, fraction
