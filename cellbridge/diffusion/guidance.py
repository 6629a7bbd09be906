"""Guidance as a denoiser around denoisers: by the same network without the condition, by a weaker one, and where and how far."""

from typing import final

import torch
from torch import Tensor

from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.errors import ConfigError, ModelError
from cellbridge.typing import Images, Labels, Times


@final
class ClassifierFreeGuidance(Denoiser):
    """Push the conditional estimate away from the unconditional one.

    x_0 = u + scale (c - u), which is the same rule in epsilon and in v, because each is affine in x_0 at a given x_t.
    Scale 1 is the conditional model bit for bit, and 0 the unconditional one; both cost one network call, any other scale two
    (in one batch of twice the size).

    Parameters
    ----------
    null_label : row of the condition embedding that training showed in place of hidden conditions.
    rescale : in [0, 1], how much of each channel's contrast is taken back to that of the conditional estimate (`rescaled`).

    References
    ----------
    Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with scale = 1 + w.
    """

    def __init__(self, denoiser: Denoiser, scale: float, null_label: int = 0, *, rescale: float = 0.0):
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.scale = scale
        self.null_label = null_label
        self.rescale = rescale

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the guided estimate of x_0; it may leave [-1, 1] for scales above 1."""
        if self.scale == 1:
            return self.denoiser(x_t, t, labels)
        if self.scale == 0:
            return self.denoiser(x_t, t, torch.full_like(labels, self.null_label))
        unconditional, conditional = _both(self.denoiser, x_t, t, labels, null_label=self.null_label)
        guided = unconditional + self.scale * (conditional - unconditional)
        return rescaled(guided, conditional, share=self.rescale) if self.rescale else guided


@final
class DistanceGuidance(Denoiser):
    """Classifier-free guidance whose scale follows how far the condition's embedding lies from the reference's.

    The reference itself has scale 1, so that a translation to the control is not pushed anywhere, and neither are compounds that the
    model cannot tell from it, whose difference of estimates is error.

    Parameters
    ----------
    scales : (rows,), from `scales_by_distance`.
    null_label : the reference's row.
    """

    scales: Tensor

    def __init__(self, denoiser: Denoiser, scales: Tensor, null_label: int):
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.register_buffer("scales", scales.detach().clone(), persistent=False)
        self.null_label = null_label

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return u + scale of the label (c - u)."""
        reference, conditional = _both(self.denoiser, x_t, t, labels, null_label=self.null_label)
        scale = self.scales[labels].to(x_t).view(-1, 1, 1, 1)
        return reference + scale * (conditional - reference)


def scales_by_distance(embeddings: Tensor, scale: float, *, reference: int) -> Tensor:
    """Return a guidance scale for each row: 1 + (scale - 1) d / (mean d), with d its distance from the reference.

    Parameters
    ----------
    embeddings : (rows, features) of the conditions to choose from, and of the reference.
    scale : at the mean distance of the rows other than the reference.
    reference : row that distances are measured from.

    Raises
    ------
    ModelError : no row differs from the reference.
    """
    distance = (embeddings - embeddings[reference]).double().norm(dim=1)
    mean = distance.sum() / max(len(distance) - 1, 1)
    if mean == 0:
        raise ModelError(
            "guidance by distance: every condition has the reference's embedding. Train the conditions first."
        )
    return 1 + (scale - 1) * distance / mean


@final
class Autoguidance(Denoiser):
    """Push the estimate away from that of a weaker self: a smaller network, or an earlier snapshot, under the same condition.

    x_0 = w + scale (d - w). What both get wrong in the same direction, the weaker more so, is extrapolated away, and unlike guidance
    by the missing condition this does not narrow the variety of a condition. Scale 1 is the denoiser bit for bit in one call.

    Parameters
    ----------
    weaker_label : row of the weaker model's own embedding that stands for the condition; None where its rows are the denoiser's.

    Raises
    ------
    ModelError : the two were trained on different schedules.

    References
    ----------
    Karras et al. 2024, "Guiding a diffusion model with a bad version of itself", arXiv:2406.02507, eq. 3.
    """

    def __init__(self, denoiser: Denoiser, weaker: Denoiser, scale: float, *, weaker_label: int | None = None):
        super().__init__()
        if not torch.equal(denoiser.schedule.alpha_bar, weaker.schedule.alpha_bar):
            raise ModelError(
                "autoguidance: the weaker model has another noise schedule, so that its x_t is not this model's. "
                "Use an earlier snapshot or a smaller network of the same schedule."
            )
        self.denoiser = denoiser
        self.weaker = weaker
        self.weaker_label = weaker_label
        self.schedule = denoiser.schedule
        self.scale = scale

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the guided estimate of x_0."""
        estimate = self.denoiser(x_t, t, labels)
        if self.scale == 1:
            return estimate
        own = labels if self.weaker_label is None else torch.full_like(labels, self.weaker_label)
        weaker = self.weaker(x_t, t, own)
        return weaker + self.scale * (estimate - weaker)


@final
class GuidanceInterval(Denoiser):
    """Guide between two times only: early on guidance takes images off the data, and late it changes nothing but costs calls.

    Parameters
    ----------
    guided, plain : the denoiser inside the interval, and outside of it.
    low, high : first and last time that is guided, in [-1, T - 1].

    Raises
    ------
    ConfigError : the interval is empty.

    References
    ----------
    Kynkäänniemi et al. 2024, "Applying guidance in a limited interval", arXiv:2404.07724, eq. 5, there in sigma / alpha.
    """

    def __init__(self, guided: Denoiser, plain: Denoiser, *, low: float, high: float):
        super().__init__()
        if low > high:
            raise ConfigError(f"guidance_interval = ({low:g}, {high:g}): the first time is after the last. Swap them.")
        self.guided = guided
        self.plain = plain
        self.schedule = guided.schedule
        self.low, self.high = low, high

    def forward(self, x_t: Images, t: Times, labels: Labels) -> Images:
        """Return the guided estimate for images inside the interval, and the plain one for the others; each costs its own calls only."""
        inside = (t >= self.low) & (t <= self.high)
        if inside.all():
            return self.guided(x_t, t, labels)
        if not inside.any():
            return self.plain(x_t, t, labels)
        x_0 = torch.empty_like(x_t)
        x_0[inside] = self.guided(x_t[inside], t[inside], labels[inside])
        x_0[~inside] = self.plain(x_t[~inside], t[~inside], labels[~inside])
        return x_0


def rescaled(guided: Images, conditional: Images, *, share: float) -> Images:
    """Return a guided estimate with the contrast of the conditional one, against over-exposure.

    m + (share std_c / std_g + 1 - share) (x - m) for each channel of each image, m being its mean. Lin et al. scale x itself, which
    in images whose mean is far from 0, as in dark backgrounds, moves the background.

    References
    ----------
    Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", arXiv:2305.08891, eq. 15 and 16.
    """
    mean = guided.mean(dim=(-2, -1), keepdim=True)
    deviation = guided - mean
    own, wanted = (x.std(dim=(-2, -1), keepdim=True, correction=0) for x in (guided, conditional))
    ratio = wanted / own.clamp_min(torch.finfo(own.dtype).tiny)
    return mean + (share * ratio + 1 - share) * deviation


def _both(denoiser: Denoiser, x_t: Images, t: Times, labels: Labels, *, null_label: int) -> tuple[Images, Images]:
    """Return the estimates under the null label and under the labels, in one call of twice the batch."""
    hidden = torch.full_like(labels, null_label)
    both = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([hidden, labels]))
    unconditional, conditional = both.chunk(2)
    return unconditional, conditional
