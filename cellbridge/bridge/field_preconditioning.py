"""The closed form of the bridge between stationary Gaussian fields, as what a network on images starts from."""

from typing import final

import torch
from torch import Tensor

from cellbridge.bridge.fields import field_bridge
from cellbridge.bridge.gaussian import Direction
from cellbridge.bridge.path import along
from cellbridge.bridge.preconditioning import Preconditioning


@final
class FieldPreconditioning(Preconditioning):
    """Second moments of each spatial frequency: with a network that says zero, the bridge between the fields, exactly.

    As `GaussianPreconditioning`, with the C × C spectra at each frequency in place of one covariance; outputs stay images, since all factors
    are applied between an eigenbasis and its inverse. Images are zero-mean.

    Parameters
    ----------
    source, target : spectra (height, width, channel, channel), as `fields.spectrum_of` estimates them.
    reg : squared volatility, per pixel.
    """

    bases: Tensor
    left: Tensor
    spreads: Tensor

    def __init__(self, source: Tensor, target: Tensor, *, reg: float):
        super().__init__()
        self.reg = reg
        bases, left, spreads = [], [], []
        for start, end in ((source, target), (target, source)):
            bridge = field_bridge(start, end, reg=reg)
            values, basis = torch.linalg.eigh(bridge.conditional)
            bases.append(basis.to(torch.complex64))
            left.append(values.clamp_min(1e-9 * float(values.max())).float())
            parts = (start, end, bridge.cross)
            spreads.append(torch.stack([(basis.conj() * (part @ basis)).sum(-2).real.float() for part in parts]))
        for name, found in (("bases", bases), ("left", left), ("spreads", spreads)):
            self.register_buffer(name, torch.stack(found))

    def inputs(self, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        way, elapsed = self._way(s, x, direction)
        a, b, c = self.spreads[way]
        variance = (1 - elapsed) ** 2 * a + elapsed**2 * b + elapsed * (1 - elapsed) * (2 * c + self.reg)
        return self._between(x, variance.rsqrt(), way)

    def endpoint(self, output: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        way, elapsed = self._way(s, x, direction)
        gain, spread = self._gain_and_spread(elapsed, way)
        return self._between(x, gain, way) + self._between(output, spread, way)

    def target(self, endpoint: Tensor, x: Tensor, s: Tensor, direction: Direction) -> Tensor:
        way, elapsed = self._way(s, x, direction)
        gain, spread = self._gain_and_spread(elapsed, way)
        return self._between(endpoint - self._between(x, gain, way), 1 / spread.clamp_min(1e-12), way)

    def _gain_and_spread(self, elapsed: Tensor, way: int) -> tuple[Tensor, Tensor]:
        p, ahead = self.left[way], self.reg * (1 - elapsed)
        total = ahead + elapsed * p
        return p / total, (p * ahead / total).sqrt()

    def _between(self, x: Tensor, factors: Tensor, way: int) -> Tensor:
        """Multiply by factors (batch, height, width, channel) in the eigenbasis of each frequency."""
        basis = self.bases[way]
        coefficients = torch.fft.fft2(x, norm="ortho")
        turned = torch.einsum("hwcd,nchw->nhwd", basis.conj(), coefficients) * factors
        return torch.fft.ifft2(torch.einsum("hwcd,nhwd->nchw", basis, turned), norm="ortho").real

    @staticmethod
    def _way(s: Tensor, x: Tensor, direction: Direction) -> tuple[int, Tensor]:
        elapsed = along(s if direction == "forward" else 1 - s, x)
        return (0, elapsed) if direction == "forward" else (1, elapsed)
