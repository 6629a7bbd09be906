"""A world of which a linear guess knows next to nothing: cells of 2 × 2 pixels, of two kinds, that go opposite ways.

A source is g times one pattern, with g one of -1.5, -0.5, 0.5, 1.5; the kind is |g| > 1, and the target is that sign times another pattern.

    python two_ways.py OUT        takes one long round of Markovian fitting from set weights
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cellbridge.assembly.bridges import BridgeCard
from cellbridge.bridge.images import ImageBridge
from cellbridge.bridge.linear_guess import Moments
from cellbridge.bridging import rounds
from cellbridge.bridging.cells import BridgeCells
from cellbridge.bridging.coupling import Labelled
from cellbridge.config import BridgeFitConfig, NetworkConfig, ScheduleConfig
from cellbridge.data.dataset import CellData
from cellbridge.data.intensity import fit_intensity
from cellbridge.data.pairs import PairSource
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.networks.bridge_backbone import PLANES, BridgeBackbone
from cellbridge.runs import RunDir

PAIRS, HELD_OUT = 200, 40
REG = (0.004, 0.004)
SHORT = {"log_every": 1000, "checkpoint_every": 1000, "batch_size": 64, "learning_rate": 5e-3}
LONG = {"imf_rounds": 1, "imf_pairs": 4000, "imf_steps": 400, "simulation_steps": 20}


class Perceptron(nn.Module):
    """A backbone for images of 2 × 2 pixels, which says nothing yet."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(4 * (1 + PLANES), 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.rows = nn.Embedding(3, 4 * (1 + PLANES))
        self.conv_out = nn.Linear(48, 4)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, t: Tensor, *, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.conv_out(self.inside(x.flatten(1) + self.rows(class_labels))).view(-1, 1, 2, 2),)


class Partners:
    """Pair i is source i and target i, in every epoch."""

    notes: tuple[str, ...] = ()

    def __init__(self, rows: np.ndarray):
        self.count, self._rows = len(rows), rows

    def __call__(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._rows, self._rows + PAIRS, np.zeros_like(self._rows)

    def figures(self, epoch: int) -> dict[str, float]:
        return {}


def configured(*, training: dict | None = None, **bridge) -> BridgeFitConfig:
    """Return the settings of a fit, and of its rounds."""
    given = {"judged": 12, "simulation_steps": 4, "imf_pairs": 6, "imf_steps": 2, **bridge}
    return BridgeFitConfig(
        store=Path("store"), bridge=given, training={**SHORT, "steps": 2, **(training or {})}, augment=False
    )


def world() -> tuple[BridgeCells, BridgeCard]:
    """Return the cells, some of them held out, and what a bridge's card says."""
    chance = np.random.default_rng(0)
    g = chance.choice([-1.5, -0.5, 0.5, 1.5], PAIRS)
    stripes, board = np.array([[1.0, -1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, 1.0]])
    sides = [g[:, None, None] * stripes, np.where(abs(g) > 1, 1.0, -1.0)[:, None, None] * board]
    clean = 2000 + 500 * np.concatenate(sides)[:, None]
    counts = (clean + chance.normal(0, 20, clean.shape)).astype(np.uint16)
    names = np.array(["DMSO"] * PAIRS + ["drug@1"] * PAIRS, dtype=object)
    maps = fit_intensity({"P1": counts[:PAIRS]}, channels=("DNA",), full_scale=65535)
    labels = torch.tensor([-1] * PAIRS + [0] * PAIRS)
    data = CellData(counts, plates=["P1"] * 2 * PAIRS, intensity=maps, labels=labels)
    train, judge = np.arange(PAIRS - HELD_OUT), np.arange(PAIRS - HELD_OUT, PAIRS)
    order = {"augment": False, "seed": 0}
    partners, others = Partners(train), Partners(judge)
    cells = BridgeCells(
        Labelled(data, names, np.array(["P1"] * 2 * PAIRS, dtype=object), "DMSO"),
        PairSource(data, partners, count=partners.count, batch_size=SHORT["batch_size"], **order),
        partners,
        np.concatenate([judge, judge + PAIRS]),
        PairSource(data, others, count=others.count, batch_size=others.count, **order),
    )
    card = BridgeCard(
        channels=("DNA",),
        size_px=2,
        control="DMSO",
        conditions=("drug@1",),
        network=NetworkConfig(),
        schedule=ScheduleConfig(),
        clock="endpoint",
        reg=REG,
        image_std=1.0,
        coupling="ot",
        plates=("P1",),
        store_sha256="0" * 64,
    )
    return cells, card


def untrained(cells: BridgeCells) -> ImageBridge:
    """Return a bridge that is its linear guess: one variance for all pixels, and no correlation."""
    images = cells.cells.data.batch(torch.arange(2 * PAIRS)).view(2, PAIRS, 1, 2, 2)
    moments = Moments(
        means=images.mean(1)[None],
        modes=torch.zeros(0, 1, 2, 2),
        covariances=torch.zeros(1, 2, 0, 0),
        cross=torch.zeros(1, 0, 0),
        rest=images.var(1).mean((2, 3))[None],
        rest_cross=torch.zeros(1, 1),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BridgeBackbone(Perceptron())
    return ImageBridge(network, moments, make_schedule("cosine", 100), clock="endpoint", reg=REG)


def weights(bridge: ImageBridge, *, seed: int, off: float = 0.05) -> dict[str, Tensor]:
    """Return averaged weights to begin a round with, so far away from the bridge's."""
    chance = torch.Generator().manual_seed(seed)
    named = bridge.network.named_parameters()
    return {name: p.detach() + off * torch.randn(p.shape, generator=chance) for name, p in named}


def refined(
    out: Path, ema: dict[str, Tensor], config: BridgeFitConfig, said: dict[str, float] | None = None
) -> tuple[dict[str, Tensor], list[dict]]:
    """Take the rounds that a configuration asks for."""
    cells, card = world()
    said = {} if said is None else said
    return rounds.refine(untrained(cells), cells, card, ema, said, config=config, run=RunDir(out), inputs={})


if __name__ == "__main__":
    torch.set_num_threads(1)
    begin = weights(untrained(world()[0]), seed=1)
    refined(Path(sys.argv[1]), begin, configured(training={"checkpoint_every": 20, "keep_last": 30}, **LONG))
