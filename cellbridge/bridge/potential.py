"""A network on top of a mixture bridge: what it is asked is only what the closed form leaves."""

from typing import final

from torch import Tensor

from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.bridge.preconditioning import Chance, GaussianPreconditioning, Preconditioning


@final
class PotentialPreconditioning(Preconditioning):
    """The guess of a mixture bridge, in the axes and standard deviations of the Gaussian one.

    With a network that says zero it is the mixture bridge, exactly and in any number of steps. A mixture leaves less to explain than a
    Gaussian, so that outputs have a variance of at most about one.

    Parameters
    ----------
    forward, backward : from source to target, and from target to source.
    gaussian : of the same second moments.
    """

    def __init__(self, forward: MixtureBridge, backward: MixtureBridge, gaussian: GaussianPreconditioning):
        super().__init__()
        self.to_target = forward.float()
        self.to_source = backward.float()
        self.gaussian = gaussian

    def inputs(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        return self.gaussian.inputs(x, s, direction)

    def endpoint(self, output: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        return self._way(direction).mean(x, _elapsed(s, direction), "forward") + self.gaussian.scaled(
            output, s, direction
        )

    def target(self, endpoint: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        guess = self._way(direction).mean(x, _elapsed(s, direction), "forward")
        return self.gaussian.unscaled(endpoint - guess, s, direction)

    def draw(self, output: Tensor, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        drawn = self._way(direction).draw(x, _elapsed(s, direction), "forward", chance=chance)
        return drawn + self.gaussian.scaled(output, s, direction)

    def _way(self, direction: Direction) -> MixtureBridge:
        return self.to_target if direction == "forward" else self.to_source


def _elapsed(s: Tensor, direction: Direction) -> Tensor:
    return s if direction == "forward" else 1 - s
