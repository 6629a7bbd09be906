"""A small normalising flow on the low frequencies of x_T; everything above them stays white.

Where x_T is not noise it is so at low frequencies first: the layout of the cell is left in it. With D the lowest modes of the cosine
transform, x_T = w + Dᵀ (f(D w) - D w), w ~ N(0, I), so that the flow shapes the low modes of the very noise of an image's seed. f is
affine couplings, followed by an affine map of each mode; it starts as that map alone and is trained by maximum likelihood.

References
----------
Dinh et al. 2017, "Density estimation using Real NVP", arXiv:1605.08803, eq. 7 and 8.
"""

import copy
import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Generator, Tensor, nn

from cellbridge.diffusion.prior import XTPrior, require_noises, require_shape
from cellbridge.typing import Images, Seeds

_STEPS, _PATIENCE, _CHECK_EVERY = 600, 10, 10
_HELD_OUT = 0.2
_LARGEST = 1.5
"""Of the logarithm of a coupling's scale, by which a mode can be stretched at most."""


class LowFrequencyFlow(nn.Module):
    """f: latent (n, d) → low modes (n, d), invertible, with its log-determinant.

    Parameters
    ----------
    size : d, the number of modes over all channels. width : of the couplings' hidden layer. layers : couplings, each of which
        changes every other mode by the modes between.
    """

    masks: Tensor

    def __init__(self, size: int, *, width: int = 64, layers: int = 4):
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))
        masks = torch.stack([(torch.arange(size) % 2 == index % 2).float() for index in range(layers)])
        self.register_buffer("masks", masks, persistent=False)
        self.couplings = nn.ModuleList(
            nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, 2 * size)) for _ in range(layers)
        )
        for coupling in self.couplings:
            last = coupling[-1]  # type: ignore[index]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the low modes, and log |det df/dlatent| of each row."""
        y, log_det = latent, torch.zeros(len(latent), dtype=latent.dtype)
        for coupling, mask in zip(self.couplings, self.masks, strict=True):
            log_scale, shift = self._terms(coupling, y, mask)
            y = y * log_scale.exp() + shift
            log_det = log_det + log_scale.sum(dim=1)
        return y * self.log_scale.exp() + self.shift, log_det + self.log_scale.sum()

    def inverse(self, modes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent that `forward` makes the modes of, and log |det dlatent/dmodes| of each row."""
        y = (modes - self.shift) * (-self.log_scale).exp()
        log_det = -self.log_scale.sum().expand(len(modes))
        for coupling, mask in reversed(list(zip(self.couplings, self.masks, strict=True))):
            log_scale, shift = self._terms(coupling, y, mask)
            y = (y - shift) * (-log_scale).exp()
            log_det = log_det - log_scale.sum(dim=1)
        return y, log_det

    def log_likelihood(self, modes: Tensor) -> Tensor:
        """Return log p(modes) of each row, in nats."""
        latent, log_det = self.inverse(modes)
        return log_det - 0.5 * (latent.square() + math.log(2 * math.pi)).sum(dim=1)

    @staticmethod
    def _terms(coupling: nn.Module, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-scale and shift of the modes that the mask leaves out, by those that it keeps."""
        raw, shift = coupling(y * mask).chunk(2, dim=1)
        return _LARGEST * torch.tanh(raw / _LARGEST) * (1 - mask), shift * (1 - mask)


@final
class FlowPrior(XTPrior):
    """Noise whose low modes went through a flow.

    Parameters
    ----------
    flow : over the modes of all channels, the first channel's first.
    shape : (channel, height, width) of x_T. modes : of each axis.
    """

    kind = "flow"

    def __init__(self, flow: LowFrequencyFlow, *, shape: tuple[int, int, int], modes: int):
        self.flow = flow.double().eval().requires_grad_(False)
        self.shape, self.modes = shape, modes

    def shape_noise(self, noise: Images, seeds: Seeds) -> Images:
        """Put the low modes through the flow, in double precision."""
        require_shape(tuple(noise.shape[1:]), self.shape)
        white = noise.cpu().double()
        low = to_modes(white, self.modes)
        shaped, _ = self.flow(low.flatten(1))
        return (white + from_modes(shaped.view_as(low) - low, self.shape)).float().to(noise.device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the flow's weights, and the sizes that it is built by."""
        first: nn.Linear = self.flow.couplings[0][0]  # type: ignore[index]
        sizes = torch.tensor([*self.shape, self.modes, first.out_features, len(self.flow.couplings)])
        return {**self.flow.state_dict(), "sizes": sizes}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "FlowPrior":
        """Build the flow from its weights."""
        channels, height, width, modes, hidden, layers = tensors["sizes"].tolist()
        with torch.random.fork_rng(devices=[]):
            flow = LowFrequencyFlow(channels * modes**2, width=hidden, layers=layers)
        weights = {name: value for name, value in tensors.items() if name != "sizes"}
        try:
            flow.double().load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"weights of another flow: {error}") from None
        return cls(flow, shape=(channels, height, width), modes=modes)


def fit_flow(x_T: Tensor, *, modes: int = 4, seed: int) -> FlowPrior:
    """Fit the flow to the low modes of x_T (n, channel, height, width) by maximum likelihood.

    A fifth of the images is held out: the weights that they find likeliest are kept. Mean and spread of a mode, which the flow starts
    from, count as far as they exceed their own standard error, so that noise that is white stays so.

    Parameters
    ----------
    modes : lowest modes of each axis: modes² of each channel are shaped.
    seed : of the weights and of what is held out.

    Raises
    ------
    ValueError : fewer than ten images, or x_T is not finite.
    """
    x = require_noises(x_T, fewest=10)
    n, channels, height, width = x.shape
    draw = Generator().manual_seed(seed)
    low = to_modes(x, modes).flatten(1)[torch.randperm(n, generator=draw)]
    held_out = max(2, round(_HELD_OUT * n))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = LowFrequencyFlow(low.shape[1]).double()
    _standardise(flow, low[held_out:])
    _train(flow, low[held_out:], low[:held_out])
    return FlowPrior(flow, shape=(channels, height, width), modes=modes)


def _standardise(flow: LowFrequencyFlow, training: Tensor) -> None:
    """Start the affine map at each mode's mean and spread, both shrunk towards N(0, 1) as James and Stein do: (1 - se² / value²)+."""
    n = len(training)
    mean, log_scale = training.mean(dim=0), training.std(dim=0).log()
    with torch.no_grad():
        flow.shift.copy_(mean * (1 - training.var(dim=0) / n / mean.square()).clamp_min(0))
        flow.log_scale.copy_(log_scale * (1 - 1 / (2 * n * log_scale.square())).clamp_min(0))


def _train(flow: LowFrequencyFlow, training: Tensor, held_out: Tensor) -> None:
    """Train on all images at once until those held out find no weights likelier any more, and leave the best in place."""
    optimiser = torch.optim.AdamW(flow.parameters(), lr=2e-3, weight_decay=1e-2)
    best, best_state, waited = -math.inf, copy.deepcopy(flow.state_dict()), 0
    for step in range(_STEPS):
        if step % _CHECK_EVERY == 0:
            with torch.no_grad():
                found = float(flow.log_likelihood(held_out).mean())
            if found > best:
                best, best_state, waited = found, copy.deepcopy(flow.state_dict()), 0
            elif (waited := waited + 1) > _PATIENCE:
                break
        loss = -flow.log_likelihood(training).mean() / training.shape[1]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    flow.load_state_dict(best_state)


def to_modes(x: Tensor, modes: int) -> Tensor:
    """Return the lowest modes of each channel's orthonormal cosine transform: (n, channel, modes, modes)."""
    rows, columns = (_basis(size, modes).to(x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def from_modes(low: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the images (n, channel, height, width) that have these low modes and no others."""
    rows, columns = (_basis(size, low.shape[-1]).to(low) for size in shape[1:])
    return rows.T @ low @ columns


def _basis(size: int, modes: int) -> Tensor:
    """Return the first rows of the orthonormal cosine transform (type II): (modes, size)."""
    k, i = torch.arange(modes, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
    rows = torch.cos(torch.pi * (i + 0.5) * k[:, None] / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows
