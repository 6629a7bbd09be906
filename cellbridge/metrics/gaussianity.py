"""Is x_T standard normal noise? A battery of tests whose null distributions are known in closed form, and their effect sizes.

With millions of pixels every p-value rejects in the end, so the gates are on effect sizes, with a bootstrap over wells; the p-values
stand beside them, Holm-corrected. Random projections and a Kolmogorov-Smirnov test over all pixels are left out: neither finds
what goes wrong in practice (a weak common factor, a low-frequency leak, another variance in the background).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics import noise_properties
from cellbridge.metrics.intervals import Blocks, percentile_interval, resampled_means
from cellbridge.metrics.noise_properties import Property
from cellbridge.metrics.spectrum import radial_spectrum

__all__ = ["Test", "battery", "drawn_effects", "holm", "properties", "radial_spectrum"]


@dataclass(frozen=True)
class Test:
    """One property of x_T: its p-value under N(0, I), and how large the deviation is.

    Parameters
    ----------
    effect : the size of the deviation in the units that `meaning` names.
    low, high : bootstrap interval of the effect (None where it has none).
    gate : the range of effects that is harmless; None where the effect is only described.
    """

    name: str
    meaning: str
    p: float
    p_holm: float
    effect: float
    low: float | None
    high: float | None
    gate: tuple[float, float] | None

    __test__ = False  # not a test case, whatever pytest takes the name for

    @property
    def state(self) -> Literal["inside", "outside", "unclear", "described"]:
        """Whether the effect is harmless; outside only where its whole interval is (or the effect, where it has none)."""
        if self.gate is None:
            return "described"
        low, high = (self.effect if end is None else end for end in (self.low, self.high))
        if high < self.gate[0] or low > self.gate[1]:
            return "outside"
        return "inside" if self.gate[0] <= self.effect <= self.gate[1] else "unclear"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.__dict__, "state": self.state}


def battery(
    x_T: NDArray[np.floating],
    *,
    x_0: NDArray[np.floating] | None = None,
    foreground: NDArray[np.bool_] | None = None,
    blocks: Blocks | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> list[Test]:
    """Test whether x_T (n, channel, height, width) is N(0, I), independent over images, pixels and channels and of x_0.

    Parameters
    ----------
    x_0 : the images that x_T was inverted from; without them its independence of x_0 is not tested.
    foreground : (n, height, width), true inside cells; without it foreground and background are not compared.
    blocks : the images that the bootstrap draws together; without them effects have no interval.

    Returns
    -------
    One `Test` per property, in a fixed order, with Holm's correction over all of them.

    Raises
    ------
    ValueError : fewer than two images, or x_T is not finite.
    """
    found = properties(x_T, x_0=x_0, foreground=foreground)
    corrected = holm([part.p for part in found])
    tests = []
    for part, p_holm in zip(found, corrected, strict=True):
        draws = drawn_effects(part, blocks, resamples=resamples, seed=seed)
        low, high = (None, None) if draws is None else percentile_interval(draws)
        tests.append(Test(part.name, part.meaning, part.p, p_holm, part.effect, low, high, part.gate))
    return tests


def holm(p_values: list[float]) -> list[float]:
    """Return Holm's step-down correction: the family-wise error rate holds under any dependence.

    References
    ----------
    Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6:65.
    """
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in corrected]


def properties(
    x_T: NDArray[np.floating], *, x_0: NDArray[np.floating] | None, foreground: NDArray[np.bool_] | None
) -> list[Property]:
    """Return the properties that can be looked at, in a fixed order."""
    x = np.asarray(x_T, dtype=np.float64)
    if len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(
            f"x_T of {len(x)} image(s), finite: {bool(np.isfinite(x).all())}; two or more finite images are needed"
        )
    found = [
        noise_properties.variance(x),
        noise_properties.scale_spread(x),
        noise_properties.shared_mean(x),
        noise_properties.low_frequencies(x),
        noise_properties.radial_bands(x),
        noise_properties.kurtosis(x),
    ]
    if x.shape[1] > 1:
        found.append(noise_properties.channel_correlation(x))
    if foreground is not None and foreground.any() and not foreground.all():
        found += noise_properties.foreground_and_background(x, np.asarray(foreground, dtype=bool))
    if x_0 is not None:
        found.append(noise_properties.correlation_with_source(x, np.asarray(x_0, dtype=np.float64)))
    return found


def drawn_effects(part: Property, blocks: Blocks | None, *, resamples: int, seed: int) -> NDArray[np.float64] | None:
    """Return the effect over bootstrap draws of whole blocks; None where it has no interval."""
    if blocks is None or part.per_image is None or part.statistic is None:
        return None
    means = resampled_means(part.per_image, blocks, resamples=resamples, seed=seed)
    return None if means is None else part.statistic(means)
