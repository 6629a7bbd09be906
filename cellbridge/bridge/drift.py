"""The drift of a bridge, through the endpoint that is expected from where the process is: u(x, s) = (E[X_1 | X_s = x] - x) / (1 - s).

Run backward, the drift is (E[X_0 | X_s = x] - x) / s. Both together give the score, reg ∇ log p_s = u + u_backward, and with it the
probability-flow ODE.

Reference: Shi et al. 2023, "Diffusion Schrödinger Bridge Matching", arXiv:2303.16852, eq. 5 and 8.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.path import along
from cellbridge.bridge.preconditioning import Chance, Preconditioning


class Endpoint(ABC):
    """What is known of a bridge's endpoints, given where it is: the joint of all bridges with all integrators."""

    @abstractmethod
    def mean(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        """Return E[X_1 | X_s = x] (forward) or E[X_0 | X_s = x] (backward); x (batch, …), s (batch,)."""

    @abstractmethod
    def draw(self, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        """Return an endpoint drawn given X_s = x, as well as the bridge knows its spread."""


@final
class EndpointDrift(Endpoint, nn.Module):
    """One network for both directions: network(input, elapsed time, direction) predicts the preconditioned endpoint.

    Parameters
    ----------
    network : (input (batch, …), elapsed (batch,) in [0, 1], sign (batch,): 1 forward, -1 backward) → output like the input. What else it
        needs to know, such as a condition, it is given by wrapping it.
    preconditioning : of inputs and outputs.
    """

    def __init__(self, network: nn.Module, preconditioning: Preconditioning):
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning

    def mean(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        return self.preconditioning.endpoint(self.output(x, s, direction), x, s, direction)

    def draw(self, x: Tensor, s: Tensor, direction: Direction, *, chance: Chance) -> Tensor:
        return self.preconditioning.draw(self.output(x, s, direction), x, s, direction, chance=chance)

    def output(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        """Return the network's output, in the standard deviations of what the linear guess leaves."""
        elapsed, sign = (s, 1.0) if direction == "forward" else (1 - s, -1.0)
        result: Tensor = self.network(self.preconditioning.inputs(x, s, direction), elapsed, torch.full_like(s, sign))
        return result


def drift(model: Endpoint, x: Tensor, s: Tensor, direction: Direction = "forward") -> Tensor:
    """Return the drift at times in which the endpoint is not reached yet: forward s < 1, backward s > 0."""
    ahead = 1 - s if direction == "forward" else s
    return (model.mean(x, s, direction) - x) / along(ahead, x)


def probability_flow(model: Endpoint, x: Tensor, s: Tensor) -> Tensor:
    """Return the velocity (u - u_backward) / 2 of the ODE with the same marginals, 0 < s < 1."""
    return (drift(model, x, s) - drift(model, x, s, "backward")) / 2
