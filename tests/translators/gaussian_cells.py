"""Cells that are Gaussian fields, and the bridge between two laws of them in closed form: a stand-in whose every answer is known."""

import torch
from torch import Tensor

from cellbridge.bridge.drift import Endpoint
from cellbridge.bridge.fields import field_bridge, filtered, power_law, sample_field
from cellbridge.bridge.gaussian import gaussian_bridge
from cellbridge.conditions import Condition
from cellbridge.translators.schroedinger import Schroedinger, Span
from cellbridge.typing import CellBatch

CONTROL, TAXOL, NULL = Condition("DMSO"), Condition("taxol", 1.0), Condition("null", 5.0)
REG = 0.04
SHAPE = (2, 4, 4)


class FieldEndpoint(Endpoint):
    """The exact endpoints of the bridge between two stationary fields with means: E[X_1 | X_s] is a filter of X_s at each s.

    Between X_s and X_1 the process is the bridge itself, so that with S_s the spectrum of X_s and G_s = E[X_1 X_sᴴ], E[X_1 | X_s] =
    m_1 + G_s S_s⁻¹ (X_s - m_s).
    """

    def __init__(self, source: Tensor, target: Tensor, *, means: tuple[float, float], reg: float):
        self.bridge, self.means, self.reg = field_bridge(source, target, reg=reg), means, reg

    def mean(self, x, s, direction):
        at = float(s[0])
        a, b, c = self.bridge.source, self.bridge.target, self.bridge.cross
        eye = torch.eye(a.shape[-1], dtype=a.dtype)
        spectrum = (1 - at) ** 2 * a + at**2 * b + at * (1 - at) * (c + c.mH + self.reg * eye)
        with_end = at * b + (1 - at) * c.mH if direction == "forward" else (1 - at) * a + at * c
        response = torch.linalg.solve(spectrum, with_end, left=False)
        here = torch.lerp(*(torch.tensor(mean) for mean in self.means), at)
        return self.means[1 if direction == "forward" else 0] + filtered(x - here, response)

    def draw(self, x, s, direction, *, chance):
        raise NotImplementedError


class PixelEndpoint(Endpoint):
    """The exact endpoints of the bridge N(m_0, v_0) → N(m_1, v_1) of every pixel by itself, drawn with their exact spread."""

    def __init__(self, source: tuple[float, float], target: tuple[float, float], *, reg: float):
        one = [torch.tensor([source[0]]), torch.tensor([[source[1]]]), torch.tensor([target[0]])]
        self.bridge = gaussian_bridge(*one, torch.tensor([[target[1]]]), reg=reg)
        self.calls = 0

    def _given(self, x, s, direction):
        way = self.bridge if direction == "forward" else self.bridge.reversed()
        at = float(s[0]) if direction == "forward" else 1 - float(s[0])
        mean, variance = (part.item() for part in way.marginal(at))
        with_end = at * way.target_covariance.item() + (1 - at) * way.cross.item()
        gain = with_end / variance
        left = way.target_covariance.item() - gain * with_end
        return way.target_mean.item() + gain * (x - mean), max(left, 0.0) ** 0.5

    def mean(self, x, s, direction):
        self.calls += 1
        return self._given(x, s, direction)[0]

    def draw(self, x, s, direction, *, chance):
        mean, spread = self._given(x, s, direction)
        return mean + spread * chance.end


def pixel_bridge(**options) -> Schroedinger:
    """Return a bridge from N(-0.6, 0.04) to N(0.2, 0.16) and N(-0.3, 0.01) pixels."""
    spans = {
        TAXOL: Span(PixelEndpoint((-0.6, 0.04), (0.2, 0.16), reg=REG), REG),
        NULL: Span(PixelEndpoint((-0.6, 0.04), (-0.3, 0.01), reg=REG), REG),
    }
    return Schroedinger(spans, CONTROL, **options)


def field_spectra(size_px: int) -> tuple[Tensor, Tensor]:
    """Return the spectra of control and target fields of two channels."""
    mixing = torch.tensor([[1.0, 0.3], [0.0, 0.8]])
    return (
        power_law(2, size_px, slope=3.0, mixing=mixing, level=0.04),
        power_law(2, size_px, slope=1.0, mixing=mixing.T, level=0.09),
    )


def field_cells(spectrum: Tensor, count: int, *, mean: float, seed: int = 0) -> Tensor:
    """Draw images (count, 2, size, size), float32."""
    return mean + sample_field(spectrum, count, generator=torch.Generator().manual_seed(seed)).float()


def cells(count: int = 6, *, condition: Condition = CONTROL, law: tuple[float, float] = (-0.6, 0.2)) -> CellBatch:
    """Return cells of independent pixels of a mean and a standard deviation."""
    images = law[0] + law[1] * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    return batch_of(images, condition)


def batch_of(images: Tensor, condition: Condition = CONTROL) -> CellBatch:
    """Return a batch of images, each with an id and a seed of its own."""
    n = len(images)
    return CellBatch(images, tuple(f"cell{i}" for i in range(n)), ("P1",) * n, (condition.name,) * n, torch.arange(n))


def part(batch: CellBatch, rows: slice) -> CellBatch:
    """Return some rows of a batch."""
    return CellBatch(
        batch.images[rows], batch.cell_ids[rows], batch.plates[rows], batch.conditions[rows], batch.seeds[rows]
    )
