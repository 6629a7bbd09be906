"""What an inversion is worth: how far image → noise → image is from the image, and how far the noise is from unit variance."""

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.diffusion.inversion import Inversion
from cellbridge.diffusion.samplers import Sampler
from cellbridge.errors import ConfigError
from cellbridge.typing import Images, Labels, Seeds

Masks = Bool[Tensor, "batch height width"]


@dataclass(frozen=True)
class RoundTrip:
    """Noise and image of a round trip, and what to report of them.

    Parameters
    ----------
    rmse : root mean square of decoded - x_0, in units of [-1, 1].
    mean, std : of x_T over everything; 0 and 1 for perfect noise.
    std_background, std_cells : root mean square over channels of the standard deviation of x_T outside and inside the masks, nan where
        there are no such pixels or no masks.
    calls : of the denoiser, by the inversion alone.
    """

    x_T: Images
    decoded: Images
    rmse: float
    mean: float
    std: float
    std_background: float
    std_cells: float
    calls: int


def require_invertible(sampler: Sampler) -> None:
    """Raise ConfigError where a sampler adds noise: no x_T alone gives its image back, so there is nothing to invert to."""
    if sampler.stochastic:
        raise ConfigError(
            "inversion is not defined for a sampler that adds noise (ddpm, or eta above 0): the same x_T gives another image each "
            "time. Use eta: 0, flow, pndm or dpm++, or draw x_T fresh."
        )


def round_trip(
    denoiser: Denoiser,
    x_0: Images,
    labels: Labels,
    *,
    inversion: Inversion,
    sampler: Sampler,
    seeds: Seeds,
    masks: Masks | None = None,
) -> RoundTrip:
    """Invert and decode images under one condition.

    Parameters
    ----------
    masks : true on the cell; without them background and cells are not told apart.

    Raises
    ------
    ConfigError : the sampler adds noise.
    """
    require_invertible(sampler)
    x_T = inversion.invert(denoiser, x_0, labels, seeds=seeds)
    decoded = sampler.sample(denoiser, x_T, labels, seeds=seeds)
    cells = None if masks is None else masks.to(x_T.device)
    return RoundTrip(
        x_T=x_T,
        decoded=decoded,
        rmse=(decoded - x_0).square().mean().sqrt().item(),
        mean=x_T.mean().item(),
        std=x_T.std(correction=0).item(),
        std_background=float("nan") if cells is None else _std_within(x_T, ~cells),
        std_cells=float("nan") if cells is None else _std_within(x_T, cells),
        calls=inversion.network_calls,
    )


def _std_within(x_T: Images, where: Masks) -> float:
    """Return the root mean square over channels of the standard deviation of x_T over the pixels of a mask."""
    pixels = x_T.movedim(1, 0)[:, where]
    return pixels.var(dim=1, correction=0).mean().sqrt().item() if pixels.numel() else float("nan")
