"""The solvers of a bridge between vectors, on scaled samples: a mixture's potential, a network over two of them, and which of the two is better.

References
----------
Korotin et al. 2024, "Light Schrödinger bridge", arXiv:2310.01174 (the mixture); Shi et al. 2023, arXiv:2303.16852 (the network).
"""

from dataclasses import replace
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Generator, Tensor

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.drift import Endpoint, EndpointDrift
from cellbridge.bridge.fitting import NetworkFit, Schedule, fit_network
from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.bridge.integrate import batch_chances, simulate, times
from cellbridge.bridge.judging import Look
from cellbridge.bridge.matching import Pairs
from cellbridge.bridge.mixture import MixtureBridge
from cellbridge.bridge.mixture_fitting import MixtureFit, fit_mixture, fit_reversed
from cellbridge.bridge.moments import second_moments
from cellbridge.bridge.potential import PotentialPreconditioning
from cellbridge.bridge.preconditioning import GaussianPreconditioning
from cellbridge.config import BridgeConfig
from cellbridge.metrics.plans import energy_distance, precision_residual
from cellbridge.networks.perceptron import BridgePerceptron
from cellbridge.runtime import derive_seed
from cellbridge.transport.cost import transport_cost
from cellbridge.transport.coupling import couple
from cellbridge.transport.pairing import draw_targets

_HELD_OUT = 1000
_PAIRS_JUDGED = 20_000
_COUPLED_AT_ONCE = 512
_FOR_POTENTIAL = 0.5
"""Of the budget, where a network is to come on top."""

Fitted = tuple[Endpoint, Literal["mixture", "neural"], dict[str, Any]]


@final
class Solvers:
    """The solvers, on scaled samples of which some rows are held out.

    Parameters
    ----------
    reg : squared volatility, in squared units of the scaled samples.
    """

    def __init__(self, source: Tensor, target: Tensor, *, reg: float, seed: int, config: BridgeConfig):
        self.reg, self._seed, self._config = reg, seed, config
        self._whole = source, target
        rng = np.random.default_rng(derive_seed("held out", seed))
        (self._source, self._held_source), (self._target, self._held_target) = (
            _split(rows, rng) for rows in self._whole
        )

    def mixture(self, budget: Budget) -> Fitted:
        found = self._potential(*self._whole, budget=budget)
        return found.bridge, "mixture", _told(found)

    def neural(self, budget: Budget) -> Fitted:
        forward = self._potential(self._source, self._target, budget=budget.part(_FOR_POTENTIAL))
        fit, facts = self._network(forward, budget)
        return fit.model, "neural", facts

    def auto(self, budget: Budget) -> Fitted:
        forward = self._potential(self._source, self._target, budget=budget.part(_FOR_POTENTIAL))
        fit, facts = self._network(forward, budget)
        scores = {
            "mixture": self._score(forward.bridge, fit.looks[0], steps=1),
            "neural": self._score(fit.model, fit.last_kept, steps=self._config.steps if fit.kept else 1),
        }
        facts |= {"held_out_scores": scores}
        facts["precision_residuals"] = {
            "mixture": self._residual(forward.bridge, steps=1),
            "neural": self._residual(fit.model, steps=self._config.steps if fit.kept else 1),
        }
        if fit.kept and sum(scores["neural"].values()) < sum(scores["mixture"].values()):
            return fit.model, "neural", facts
        return forward.bridge, "mixture", facts

    def _potential(self, source: Tensor, target: Tensor, *, budget: Budget) -> MixtureFit:
        seed = derive_seed("potential", self._seed) >> 1
        return fit_mixture(source, target, reg=self.reg, seed=seed, budget=budget, components=self._config.components)

    def _network(self, forward: MixtureFit, budget: Budget) -> tuple[NetworkFit, dict[str, Any]]:
        backward = fit_reversed(forward, self._source, self._target, reg=self.reg, budget=budget.part(0.3))
        moments = second_moments(self._source), second_moments(self._target)
        gaussian = GaussianPreconditioning(gaussian_bridge(*moments[0], *moments[1], reg=self.reg))
        copy = MixtureBridge(
            forward.bridge.log_weights, forward.bridge.offsets, forward.bridge.covariances, reg=self.reg
        )
        width = self._config.width
        weights = Generator().manual_seed(derive_seed("weights", self._seed))
        network = BridgePerceptron(self._source.shape[1], width=width, generator=weights)
        fit = fit_network(
            EndpointDrift(network, PotentialPreconditioning(copy, backward.bridge, gaussian)),
            _drawn_from(self._source),
            _drawn_from(self._target),
            (self._held_source, self._held_target),
            reg=self.reg,
            seed=derive_seed("network", self._seed),
            budget=budget.part(1.0),
            schedule=replace(Schedule(), batch_size=self._config.batch_size, learning_rate=self._config.learning_rate),
            couple=self._couple if self._config.pairs == "coupled" else None,
        )
        looks = [{"step": look.step, "distance": look.distance, "spread": look.spread} for look in fit.looks]
        facts = {"network_steps": fit.steps, "network_kept_at_step": fit.kept, "looks": looks}
        return fit, _told(forward) | {"components_backward": backward.components} | facts

    def _couple(self, generator: Generator) -> Pairs:
        """Return pairs of an entropic plan between draws of both sides."""
        source, target = (
            _drawn_from(rows)(min(_COUPLED_AT_ONCE, len(rows)), generator) for rows in (self._source, self._target)
        )
        plan = couple(transport_cost(source, target, dtype=torch.float64), reg=self.reg)
        return Pairs(source, target[draw_targets(plan, generator=generator)])

    def _score(self, model: Endpoint, look: Look, *, steps: int) -> dict[str, float]:
        """Judge a push-forward of held-out rows, in units of the target's own spread, and the plan."""
        target = self._held_target
        spread = float(torch.pdist(target.double()).mean())
        moved = self._carried(model, self._held_source, steps=steps)
        return {"energy_distance": energy_distance(moved, target) / spread, "plan_off": look.off}

    def _residual(self, model: Endpoint, *, steps: int) -> float | None:
        """Return the residual of -I / reg, of all sources as often as they are needed; None where they are too few."""
        whole = self._whole[0]
        if len(whole) <= 2 * whole.shape[1] + 1:
            return None
        source = whole.repeat(-(-_PAIRS_JUDGED // len(whole)), 1)
        return precision_residual(source, self._carried(model, source, steps=steps), reg=self.reg)

    def _carried(self, model: Endpoint, source: Tensor, *, steps: int) -> Tensor:
        chances = batch_chances(source, Generator().manual_seed(derive_seed("score", self._seed)))
        return simulate(model, source, reg=self.reg, chances=chances, grid=times(steps))


def _told(found: MixtureFit) -> dict[str, Any]:
    held_out = {str(count): value for count, value in found.held_out.items()}
    return {"components": found.components, "held_out_objective": held_out}


def _drawn_from(rows: Tensor) -> Any:
    return lambda count, generator: rows[torch.randint(len(rows), (count,), generator=generator)]


def _split(rows: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(rng.permutation(len(rows)))
    held = min(_HELD_OUT, max(2, len(rows) // 10))
    return rows[order[held:]], rows[order[:held]]
