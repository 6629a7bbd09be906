"""A convolutional network on pairs of stationary Gaussian fields, whose bridge is known frequency by frequency."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init

from cellbridge.bridge.budget import Budget
from cellbridge.bridge.drift import EndpointDrift
from cellbridge.bridge.field_preconditioning import FieldPreconditioning
from cellbridge.bridge.fields import (
    field_bridge,
    mean_field_uvp,
    power_law,
    sample_field,
    spectrum_of,
    spectrum_uvp,
)
from cellbridge.bridge.fitting import Draw, Schedule, fit_network
from cellbridge.bridge.integrate import batch_chances, simulate, times
from cellbridge.runs import write_json
from cellbridge.runtime import generator

_CHANNELS, _WIDTH = 5, 32
_SOURCES, _DRAWS, _MARGINAL = 16, 64, 2000


@dataclass(frozen=True)
class FieldCell:
    """A pair of fields, and how long a network may take."""

    seed: int
    points: int
    seconds: float
    size_px: int = 16
    reg: float = 1.0

    @property
    def name(self) -> str:
        return f"fields-{self.size_px}px-reg{self.reg:g}-seed{self.seed}-n{self.points}-{self.seconds:g}s"


class FieldNetwork(nn.Module):
    """Three circular 3 × 3 convolutions that are told time and direction; the last starts at zero."""

    def __init__(self, channels: int, *, width: int, chance: Generator):
        super().__init__()
        sizes = ((channels + 2, width), (width, width), (width, channels))
        self.layers = nn.ModuleList(skip_init(nn.Conv2d, a, b, 3, padding=1, padding_mode="circular") for a, b in sizes)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=(9 * layer.in_channels) ** -0.5, generator=chance)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, x: Tensor, elapsed: Tensor, sign: Tensor) -> Tensor:
        told = torch.stack([2 * elapsed - 1, sign], dim=1)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        x = torch.cat([x, told], dim=1)
        for layer in self.layers[:-1]:
            x = torch.nn.functional.silu(layer(x))
        return self.layers[-1](x)


def measured(cell: FieldCell, folder: Path | None) -> dict[str, Any]:
    """Measure a cell, or read what an earlier run measured."""
    path = None if folder is None else folder / f"{cell.name}.json"
    if path is not None and path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    found = _measure(cell)
    if path is not None:
        write_json(path, found)
    return found


def _measure(cell: FieldCell) -> dict[str, Any]:
    chance = generator("cpu", "fields", cell.seed)
    source, target = (_spectrum(cell.size_px, slope, chance) for slope in (3.0, 2.0))
    images = [sample_field(spectrum, cell.points, generator=chance).float() for spectrum in (source, target)]
    budget = Budget(cell.seconds)
    held = cell.points // 10
    spectra = [spectrum_of(rows[held:]) for rows in images]
    preconditioning = FieldPreconditioning(*spectra, reg=cell.reg)
    fit = fit_network(
        EndpointDrift(FieldNetwork(_CHANNELS, width=_WIDTH, chance=chance), preconditioning),
        _drawn_from(images[0][held:]),
        _drawn_from(images[1][held:]),
        (images[0][:held], images[1][:held]),
        reg=cell.reg,
        seed=cell.seed,
        budget=budget,
        schedule=Schedule(batch_size=64, simulated=256, steps_a_round=20, learning_rate=1e-3),
    )
    return _judged(cell, fit.model, source, target, chance) | {"steps": fit.steps, "kept_at_step": fit.kept}


def _judged(
    cell: FieldCell, model: EndpointDrift, source: Tensor, target: Tensor, chance: Generator
) -> dict[str, float]:
    truth = field_bridge(source, target, reg=cell.reg)
    start = sample_field(source, _SOURCES, generator=chance).float()
    many = start.repeat_interleave(_DRAWS, 0)

    def carried(x: Tensor) -> Tensor:
        return simulate(model, x, reg=cell.reg, chances=batch_chances(x, chance), grid=times(20))

    means = carried(many).view(_SOURCES, _DRAWS, *start.shape[1:]).mean(1)
    exact = truth.draw(many, chance).view(_SOURCES, _DRAWS, *start.shape[1:]).mean(1)
    wanted = truth.mean(start)
    pushed = carried(sample_field(source, _MARGINAL, generator=chance).float())
    real = sample_field(target, _MARGINAL, generator=chance)
    return {
        "mean_uvp": mean_field_uvp(means, wanted, target=target),
        "mean_floor": mean_field_uvp(exact, wanted, target=target),
        "marginal_uvp": spectrum_uvp(spectrum_of(pushed), target, target=target),
        "marginal_floor": spectrum_uvp(spectrum_of(real), target, target=target),
    }


def _spectrum(size_px: int, slope: float, chance: Generator) -> Tensor:
    mixing = torch.eye(_CHANNELS) + 0.3 * torch.randn(_CHANNELS, _CHANNELS, generator=chance)
    return power_law(_CHANNELS, size_px, slope=slope, mixing=mixing)


def _drawn_from(rows: Tensor) -> Draw:
    return lambda count, chance: rows[torch.randint(len(rows), (count,), generator=chance)]
