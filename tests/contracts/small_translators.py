"""Every translator there is, small and untrained: over endpoints, denoisers and velocities in closed form."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cellbridge.baselines.flow import ControlFlow, NoiseFlow, Velocity
from cellbridge.baselines.imitation import PlateAffine
from cellbridge.baselines.one_change import OneChange
from cellbridge.baselines.trivial import AffineMap, ChannelAffine, DenoisedCopy, Filter, Identity
from cellbridge.bridge.drift import Endpoint
from cellbridge.bridge.integrate import times
from cellbridge.conditions import Condition
from cellbridge.diffusion.ancestral import Ddpm
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.guidance import ClassifierFreeGuidance
from cellbridge.diffusion.inversion import Inversion
from cellbridge.diffusion.noise_bank import fit_bank
from cellbridge.diffusion.samplers import Flow
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.networks.condition_table import ConditionTable
from cellbridge.translators.ddib import Ddib
from cellbridge.translators.schroedinger import Schroedinger, Span
from cellbridge.translators.sdedit import Sdedit
from cellbridge.translators.translator import Translator
from cellbridge.typing import CellBatch

CONTROL, TAXOL, OTHER = Condition("DMSO"), Condition("taxol", 1.0), Condition("null", 5.0)
PLATES = ("P1", "P2")
SHAPE = (2, 6, 6)


class Towards(Endpoint):
    """Expects the other end half-way between where the process is and a picture of its own; draws with a spread."""

    def __init__(self, level: float):
        self.level = level

    def mean(self, x, s, direction):
        return 0.5 * x + 0.5 * (self.level if direction == "forward" else -0.4) * torch.cos(x.flip(-1))

    def draw(self, x, s, direction, *, chance):
        return self.mean(x, s, direction) + 0.05 * chance.end


class Rows(Denoiser):
    """The exact denoiser of Gaussian pixels with a mean for each row, and a little of the neighbour's."""

    def __init__(self):
        super().__init__()
        self.schedule = make_schedule("cosine", 100)

    def forward(self, x_t, t, labels):
        alpha, sigma = self.schedule.coefficients(t, x_t)
        mean = torch.tensor([0.0, -0.4, 0.2, 0.1])[labels].view(-1, 1, 1, 1)
        near = 0.9 * x_t + 0.1 * x_t.roll(1, -1)
        return mean + alpha * 0.09 / (alpha**2 * 0.09 + sigma**2) * (near - alpha * mean)


class Pull(Velocity):
    """Draws towards a level for each row and plate."""

    def forward(self, x, s, labels):
        return 0.1 * labels.view(-1, 1, 1, 1) - torch.tanh(x) * (1 + s.view(-1, 1, 1, 1))


@dataclass(frozen=True)
class Kind:
    """How a translator is made, and what it is by its nature.

    Parameters
    ----------
    chance : whether a cell's seed decides. any_target : whether it takes any target for granted, since it has none of its own.
    """

    make: Callable[[], Translator]
    chance: bool = False
    any_target: bool = False


def _bridge(**options) -> Callable[[], Translator]:
    spans = {TAXOL: Span(Towards(0.3), 0.01), OTHER: Span(Towards(0.6), 0.02)}
    return lambda: Schroedinger(spans, CONTROL, steps=5, **options)


def _ddib(**options) -> Callable[[], Translator]:
    model = Rows()
    targets = {CONTROL: (model, 1), TAXOL: (ClassifierFreeGuidance(model, 2.0, 1), 2), OTHER: (model, 3)}
    return lambda: Ddib(model, 1, targets, **{"inversion": Inversion(5), "sampler": Flow(5), **options})


def _sdedit(strength: float, sampler=None) -> Callable[[], Translator]:
    model = Rows()
    return lambda: Sdedit({TAXOL: (model, 2), OTHER: (model, 3)}, strength=strength, sampler=sampler or Flow(5))


def _prior():
    noise = torch.randn(30, *SHAPE, generator=torch.Generator().manual_seed(3))
    return dict.fromkeys((CONTROL, TAXOL, OTHER), fit_bank(noise))


def _maps(shift: float) -> AffineMap:
    return AffineMap(torch.tensor([0.9, 1.1]), torch.full((2,), shift))


def _noise_flow() -> Translator:
    table = ConditionTable.of(("", "DMSO", TAXOL.name, OTHER.name), plates=PLATES)
    return NoiseFlow(Pull(), {TAXOL: 2, OTHER: 3}, table=table, grid=times(5))


KINDS: dict[str, Kind] = {
    "bridge, mean": Kind(_bridge(), chance=True),
    "bridge, euler": Kind(_bridge(step="euler", grid="uniform"), chance=True),
    "bridge, draw": Kind(_bridge(step="draw"), chance=True),
    "bridge, ode": Kind(_bridge(way="ode")),
    "ddib": Kind(_ddib()),
    "ddib, fresh": Kind(_ddib(x_T="fresh", sampler=Ddpm(5)), chance=True),
    "ddib, prior": Kind(_ddib(x_T=_prior()), chance=True),
    "sdedit": Kind(_sdedit(0.5), chance=True),
    "sdedit, ancestral": Kind(_sdedit(1.0, Ddpm(5)), chance=True),
    "sdedit, none": Kind(_sdedit(0.0)),
    "copy": Kind(Identity, any_target=True),
    "denoised copy": Kind(lambda: DenoisedCopy((Filter("gaussian", 0.8), Filter("median", 1))), any_target=True),
    "moment matching": Kind(lambda: ChannelAffine({TAXOL: _maps(0.4)}, name="moment matching")),
    "affine imitation": Kind(lambda: PlateAffine(dict.fromkeys(PLATES, _maps(0.2)), condition=TAXOL)),
    "one change": Kind(lambda: OneChange(torch.full(SHAPE, 0.5), condition=TAXOL)),
    "control flow": Kind(
        lambda: ControlFlow(
            Pull(), {TAXOL: 2, OTHER: 3}, control=CONTROL, noise_level=0.1, grid=times(5, grid="uniform")
        ),
        chance=True,
    ),
    "noise flow": Kind(_noise_flow, chance=True),
}


def cells(count: int = 6) -> CellBatch:
    """Return control cells on two plates, each with an id and a seed."""
    images = (-0.4 + 0.3 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    plates = tuple(PLATES[i % 2] for i in range(count))
    ids = tuple(f"cell {i}" for i in range(count))
    return CellBatch(images, ids, plates, ("DMSO",) * count, 1000 + 7 * torch.arange(count))


def some(batch: CellBatch, rows: list[int]) -> CellBatch:
    """Return rows of a batch, in their order."""
    return CellBatch(
        batch.images[rows],
        *(tuple(names[i] for i in rows) for names in (batch.cell_ids, batch.plates, batch.conditions)),
        batch.seeds[rows],
    )
