"""Bridges between images of a control and of several conditions: one network, both directions, any volatility of a range.

The pairs' second moments give the best linear guess of either endpoint and what it leaves open; the network is asked for what is left, in
units of its standard deviation. Its backbone can come from a diffusion model, whose time t then
has to be read off the bridge: a point of the bridge is not a noised image, and which of its ratios of signal to noise stands for t is a choice.

References
----------
De Bortoli et al. 2024, "Schrödinger bridge flow for unpaired data translation", arXiv:2409.09347 (one network, both directions).
Karras et al. 2022, arXiv:2206.00364, sec. 5 (unit variance of inputs and targets).
"""

import math
from typing import Literal, final

import torch
from torch import Tensor, nn

from cellbridge.bridge.drift import Endpoint
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.linear_guess import LinearGuess, Moments, Where
from cellbridge.bridge.path import along
from cellbridge.bridge.preconditioning import Chance
from cellbridge.diffusion.schedule import Schedule
from cellbridge.networks.bridge_backbone import BridgeBackbone
from cellbridge.typing import Images, Times

Clock = Literal["endpoint", "noise", "elapsed"]
"""What of a point of the bridge stands for the diffusion's time: how much of the *endpoint* is in it, the start counting as noise; how much
Brownian *noise* is in it, both ends counting as image; or the *elapsed* share of the way, with an input of unit variance."""

_SMALL = 1e-12


@final
class ImageBridge(nn.Module):
    """One network for all conditions, and what surrounds it.

    Parameters
    ----------
    network : its labels are 1 + 2 condition towards the condition, and one more towards the control; 0 is not used.
    moments : of the pairs.
    schedule : whose times the network's backbone knows.
    reg : lowest and highest squared volatility that it is trained at.
    optimal : the linear guess is that of the optimal plan between Gaussians, from which the pairs are drawn, too.
    """

    def __init__(
        self,
        network: BridgeBackbone,
        moments: Moments,
        schedule: Schedule,
        *,
        clock: Clock,
        reg: tuple[float, float],
        optimal: bool = False,
    ):
        super().__init__()
        self.network = network
        self.linear = LinearGuess(moments, optimal=optimal)
        self.schedule = schedule
        self.clock: Clock = clock
        self.reg = reg

    def output(self, x: Images, where: Where, *, network: nn.Module | None = None) -> Images:
        """Return the network's output: the endpoint less its linear guess, in standard deviations of what that leaves.

        Parameters
        ----------
        network : the bridge's own, compiled or wrapped.
        """
        inputs, t = self._inputs(x, where)
        labels = 1 + 2 * where.conditions + (~where.forward).long()
        noise = self._noise(where.reg)
        output: Images = (network or self.network)(inputs, t, labels, elapsed=where.elapsed, noise=noise)
        return output.to(x.dtype)

    def endpoint(self, x: Images, where: Where) -> Images:
        """Return the expected endpoint."""
        guess, spread = self.linear(x, where)
        return guess + spread * self.output(x, where)

    def wanted(self, endpoint: Images, x: Images, where: Where) -> Images:
        """Return what the output is to be for an endpoint: of unit variance."""
        guess, spread = self.linear(x, where)
        return (endpoint - guess) / spread.clamp_min(_SMALL)

    def _inputs(self, x: Images, where: Where) -> tuple[Images, Times]:
        """Return what the backbone sees, and at which time."""
        elapsed = along(where.elapsed, x)
        if self.clock == "elapsed":
            scaled = (x - self.linear.mean(where)) * self.linear.variance(where).rsqrt()
            return scaled, (1 - where.elapsed) * self.schedule.steps - 1
        brownian = along(where.reg, x) * elapsed * (1 - elapsed)
        if self.clock == "noise":
            angle = torch.atan(brownian.sqrt())
            return x * angle.cos(), self._time(angle)
        ends = self.linear.ends(where)
        other = ((1 - elapsed) ** 2 * ends.start_variance.mean((1, 2, 3), keepdim=True) + brownian).sqrt()
        angle = torch.atan2(other, elapsed)
        scale = (elapsed**2 + other**2).clamp_min(_SMALL).rsqrt()
        return (x - (1 - elapsed) * ends.start) * scale, self._time(angle)

    def _time(self, angle: Tensor) -> Times:
        """Return the time whose noise an angle (batch, 1, 1, 1) stands for, float32; past the last it is the last."""
        return self.schedule.time_of_angle(angle.flatten()).float()

    def _noise(self, reg: Tensor) -> Tensor:
        low, high = (math.log(value) for value in self.reg)
        if high == low:
            return torch.zeros_like(reg)
        return 2 * (reg.log() - low) / (high - low) - 1


@final
class ImageEndpoint(Endpoint):
    """One condition's bridge at one volatility.

    The endpoint's spread is not white: what the network leaves open is structured. So `draw` is the mean, like `mean`, and the chance of the
    way is in the path alone; take many steps, and step kind `mean` or `euler`.

    Parameters
    ----------
    condition : its number in the bridge.
    """

    def __init__(self, bridge: ImageBridge, *, condition: int, reg: float):
        self.bridge = bridge
        self.condition = condition
        self.reg = reg

    def mean(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        return self.bridge.endpoint(x, self.where(s, direction))

    def draw(self, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        return self.mean(x, s, direction)

    def where(self, s: Tensor, direction: Direction) -> Where:
        """Return where a batch is at bridge times s."""
        forward = direction == "forward"
        return Where(
            s if forward else 1 - s,
            torch.full_like(s, forward, dtype=torch.bool),
            torch.full_like(s, self.condition, dtype=torch.int64),
            torch.full_like(s, self.reg),
        )
