"""Does each stain carry its part? Channel by channel: is there structure, does it change as in real cells, and is it the right stain?

A distance over all channels hides a channel that was dropped, left as it was, or filled with another one. Every threshold is a quantile of real
cells; what most outputs do (an interval above one half) is named; intervals hold for all channels together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import t as student_t

from cellbridge.metrics.contrasts import share_difference
from cellbridge.metrics.effects import Agreement, Effect, Sample, agreement, paired_effect, real_effect
from cellbridge.metrics.intervals import LEVEL, Blocks, Estimate, corrected_level, share

Floats = NDArray[np.floating]
DESCRIPTORS = (
    "mean",
    "sd",
    "p10",
    "p50",
    "p90",
    "p99",
    "neighbour_1",
    "neighbour_2",
    "neighbour_4",
    "radius",
    "spread",
)
"""What a channel of a cell is described by: intensities, correlation of pixels 1, 2 and 4 px apart, mean radius and spread of the signal."""

NOISY = "noisier than nearly all real cells"
_AGAINST_REAL = ("outputs", "real", "control")


@dataclass(frozen=True)
class Stained:
    """Cells by their images (n, channel, height, width), with plates (n,) and the blocks that are resampled together."""

    images: Floats
    plates: NDArray[Any]
    blocks: Blocks


@dataclass(frozen=True)
class ChannelEvidence:
    """What one channel of the outputs shows.

    Parameters
    ----------
    empty : share of outputs with less structure than all but 5 % of real cells have in this channel.
    noisy : share of outputs whose grain, what smoothing by one pixel takes away, is stronger than in all but 5 % of real cells.
    repeated : share of outputs that are more like another output than all but 5 % of real pairs of cells are.
    changes : whether the real compound changes this channel at all.
    effect : how the effect on this channel agrees with the real one; a slope of 0 is a copy, of 1 the right size.
    seen_as, seen : the stain that outputs are most often taken for, and the share of it.
    own_real : share of real target cells in which this channel is taken for what it is.
    twin, twinned : the channel that outputs of this one are most like, and the share that is more like it than in all but 5 % of real cells.
    findings : in words; none for a channel that carries its part.
    """

    channel: str
    empty: Estimate
    noisy: Estimate
    repeated: Estimate
    changes: bool
    effect: Agreement
    seen_as: str
    seen: Estimate
    own_real: Estimate
    twin: str | None
    twinned: Estimate | None
    findings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"channel": self.channel, "changes": self.changes, "effect": self.effect.to_dict()}
        for name in ("empty", "noisy", "repeated", "seen", "own_real"):
            found[name] = getattr(self, name).to_dict()
        twinned = {"not_computed": "one channel only"} if self.twinned is None else self.twinned.to_dict()
        words = {"seen_as": self.seen_as, "twin": self.twin, "findings": list(self.findings)}
        return found | {"twinned": twinned} | words


def channel_evidence(
    outputs: Stained,
    sources: Stained,
    real: Stained,
    control: Stained,
    *,
    channels: Sequence[str],
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> list[ChannelEvidence]:
    """Judge every channel of the outputs of one target.

    Parameters
    ----------
    outputs, sources : row by row; any arm over the same sources can stand in for the outputs, so null rows are judged alike.
    real, control : real cells of the target and of the control, on the plates of the sources; at least two of each.
    level : at which all channels hold together.
    """
    arms = {"outputs": outputs, "sources": sources, "real": real, "control": control}
    smooth = {name: _smoothed(part.images) for name, part in arms.items()}
    grain = {name: (part.images - smooth[name]).std(axis=(2, 3)) for name, part in arms.items()}
    described = {name: descriptors(part) for name, part in smooth.items()}
    stains = _stains(described, real.blocks, seed=seed)
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    each = corrected_level(len(channels), level=level)
    faithful = _correlations(smooth["outputs"], smooth["sources"])
    evidence = []
    for index in range(len(channels)):
        looks = _Looks({name: part[:, index] for name, part in smooth.items()}, arms, each)
        samples = {name: Sample(described[name][:, index], part.plates, part.blocks) for name, part in arms.items()}
        effect, changes = _effect(samples, level=each, **settings)
        seen, of_real = stains["outputs"][:, index], stains["real"][:, index]
        most = int(np.bincount(seen, minlength=len(channels)).argmax())
        twin, twinned = _twin(smooth, index)
        rest = _rest(real.blocks, seed=seed)
        found = ChannelEvidence(
            channel=channels[index],
            empty=looks.share(looks.empty(), **settings),
            noisy=looks.share(_beyond(*(grain[name][:, index] for name in _AGAINST_REAL)), **settings),
            repeated=looks.share(looks.repeated(seed=seed), **settings),
            changes=changes,
            effect=effect,
            seen_as=channels[most],
            seen=looks.share(seen == most, **settings),
            own_real=share(of_real == index, rest, level=each, **settings),
            twin=None if twin is None else channels[twin],
            twinned=None if twin is None else looks.share(twinned, **settings),
            findings=(),
        )
        rarer = share_difference(seen == most, of_real == most, (outputs.blocks, rest), level=each)
        second_hand = twin is not None and faithful[index] <= faithful[twin]
        words = _words(found, stain=most != index and _above(rarer, 0.0), second_hand=second_hand)
        evidence.append(replace(found, findings=words))
    return evidence


def descriptors(images: Floats) -> NDArray[np.float64]:
    """Describe each channel of each cell (smoothed images, so that taking noise away is no effect), (n, channel, len(DESCRIPTORS)); 0 where a constant channel has no such thing."""
    x = images.astype(np.float64)
    n, channels, height, width = x.shape
    flat = x.reshape(n, channels, -1)
    quantiles = np.moveaxis(np.percentile(flat, [10, 50, 90, 99], axis=2), 0, 2)
    centred = x - x.mean(axis=(2, 3), keepdims=True)
    variance = (centred**2).mean(axis=(2, 3))
    safe = np.where(variance > 1e-12, variance, np.inf)
    lags = []
    for lag in (1, 2, 4):
        step = min(lag, height - 1, width - 1)
        across = (centred[..., step:] * centred[..., :-step]).mean(axis=(2, 3))
        down = (centred[..., step:, :] * centred[..., :-step, :]).mean(axis=(2, 3))
        lags.append((across + down) / 2 / safe)
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2).ravel() / (min(height, width) / 2)
    weight = np.maximum(flat - quantiles[..., :1], 0.0)
    total = weight.sum(axis=2)
    safe = np.where(total > 1e-9, total, np.inf)
    radius = (weight * distance).sum(axis=2) / safe
    spread = np.sqrt(np.maximum((weight * distance**2).sum(axis=2) / safe - radius**2, 0.0))
    parts = [flat.mean(axis=2), np.sqrt(variance), *np.moveaxis(quantiles, 2, 0), *lags, radius, spread]
    return np.stack(parts, axis=2)


def _words(found: ChannelEvidence, *, stain: bool, second_hand: bool) -> tuple[str, ...]:
    """Put into words what the intervals exclude.

    Parameters
    ----------
    stain : whether outputs are taken for another stain more often than real cells are.
    second_hand : whether the channel is less like its own source than its twin is: of two that repeat one another, this one was replaced.
    """
    if _above(found.empty, 0.5):
        return ("dropped: most outputs have less structure here than real cells",)
    if _above(found.noisy, 0.5):
        return (NOISY,)
    words = []
    if _above(found.repeated, 0.5):
        words.append("the same in all cells")
    if second_hand and found.twinned is not None and _above(found.twinned, 0.5):
        words.append(f"repeats {found.twin}")
    if stain and _above(found.seen, 0.5):
        words.append(f"replaced: most outputs look like {found.seen_as}")
    slope = found.effect.slope
    if found.changes and not words and slope is not None and slope.low is not None and slope.high is not None:
        none_of_it = slope.low <= 0 and slope.high < 1
        words += ["does not change as real cells do"] * none_of_it
    return tuple(words)


@dataclass(frozen=True)
class _Looks:
    """One smoothed channel of all cells, and what is unusual about the outputs'."""

    channel: dict[str, NDArray[np.float64]]
    arms: dict[str, Stained]
    level: float

    def empty(self) -> NDArray[np.bool_]:
        """Return which outputs have little structure."""
        of = {name: part.std(axis=(1, 2)) for name, part in self.channel.items()}
        return _below(of["outputs"], of["real"], of["control"])

    def repeated(self, *, seed: int) -> NDArray[np.bool_]:
        """Return which outputs are very like another one of their plate."""
        of = {name: _neighbour_likeness(part, self.arms[name].plates, seed=seed) for name, part in self.channel.items()}
        return _beyond(of["outputs"], of["real"], of["control"])

    def share(self, hits: NDArray[np.bool_], *, resamples: int, seed: int) -> Estimate:
        return share(hits, self.arms["outputs"].blocks, resamples=resamples, seed=seed, level=self.level)


def _above(found: Estimate, value: float) -> bool:
    return found.low is not None and found.low > value


def _effect(samples: dict[str, Sample], *, resamples: int, seed: int, level: float) -> tuple[Agreement, bool]:
    settings = {"resamples": resamples, "seed": seed}
    real = real_effect(samples["real"], samples["control"], **settings)
    effect = paired_effect(samples["outputs"], samples["sources"], samples["control"], **settings)
    return agreement(effect, real, level=level), _changes(real, level=level)


def _changes(real: Effect, *, level: float) -> bool:
    """Say whether any descriptor moves, at a level that is corrected for their number."""
    if real.error is None:
        return False
    each = corrected_level(len(real.mean), level=level)
    bound = float(student_t.ppf(0.5 + each / 2, real.blocks.count - 1))
    return bool((np.abs(real.mean) > bound * real.error)[real.error > 0].any())


def _smoothed(images: Floats) -> NDArray[np.float64]:
    """Smooth by one pixel, so that camera noise is no structure."""
    return np.asarray(gaussian_filter(images.astype(np.float64), (0, 0, 1.0, 1.0)))


def _below(outputs: NDArray[np.float64], *real: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which outputs lie below the lower 5 % of every kind of real cells."""
    return outputs < min(float(np.quantile(part, 1 - LEVEL)) for part in real)


def _beyond(outputs: NDArray[np.float64], *real: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which outputs lie above the upper 5 % of every kind of real cells."""
    return outputs > max(float(np.quantile(part, LEVEL)) for part in real)


def _correlations(outputs: Floats, sources: Floats) -> list[float]:
    """Return how like its source each channel is, mean over cells."""
    return [float(_correlation(outputs[:, index], sources[:, index]).mean()) for index in range(outputs.shape[1])]


def _neighbour_likeness(channel: NDArray[np.float64], plates: NDArray[Any], *, seed: int) -> NDArray[np.float64]:
    """Return the correlation of each cell with another one of its plate; 0 where one is constant, and for a cell without company."""
    rng, partner = np.random.default_rng([seed, 12]), np.arange(len(channel))
    for plate in np.unique(plates):
        rows = rng.permutation(np.flatnonzero(np.asarray(plates) == plate))
        partner[rows] = np.roll(rows, 1)
    found = _correlation(channel, channel[partner])
    return np.where(partner == np.arange(len(channel)), 0.0, found)


def _correlation(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Return the correlation over pixels of the cells of two stacks (n, height, width); 0 where one is constant."""
    x, y = (part.reshape(len(part), -1).astype(np.float64) for part in (a, b))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    norms = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.asarray((x * y).sum(axis=1) / np.where(norms > 1e-9, norms, np.inf))


def _twin(smooth: dict[str, NDArray[np.float64]], index: int) -> tuple[int | None, NDArray[np.bool_]]:
    """Return the channel that most outputs are unduly like, and which outputs are."""
    best: int | None = None
    chosen = np.zeros(len(smooth["outputs"]), dtype=bool)
    for other in range(smooth["outputs"].shape[1]):
        if other == index:
            continue
        of = {name: _correlation(part[:, index], part[:, other]) for name, part in smooth.items()}
        found = _beyond(of["outputs"], of["real"], of["control"])
        if best is None or found.mean() > chosen.mean():
            best, chosen = other, found
    return best, chosen


def _half_rows(blocks: Blocks, *, seed: int) -> NDArray[np.bool_]:
    """Choose half of the cells of every block."""
    random, chosen = np.random.default_rng([seed, 13]), np.zeros(len(blocks.codes), dtype=bool)
    for code in np.unique(blocks.codes):
        rows = random.permutation(np.flatnonzero(blocks.codes == code))
        chosen[rows[: (len(rows) + 1) // 2]] = True
    return chosen


def _rest(blocks: Blocks, *, seed: int) -> Blocks:
    return blocks.take(np.flatnonzero(~_half_rows(blocks, seed=seed)))


def _stains(
    described: dict[str, NDArray[np.float64]], real_blocks: Blocks, *, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Say which stain each channel of each cell looks like: linear discriminants of the descriptors of real channels.

    Trained on the control cells and one half of the target's; the target's other half and the outputs are classified.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    told = _half_rows(real_blocks, seed=seed)
    training = np.concatenate([described["control"], described["real"][told]])
    width, channels = training.shape[2], training.shape[1]
    labels = np.tile(np.arange(channels), len(training))
    asked = {"outputs": described["outputs"], "real": described["real"][~told]}
    if channels == 1:
        return {name: np.zeros(part.shape[:2], dtype=np.int64) for name, part in asked.items()}
    flat = training.reshape(-1, width)
    centre, spread = flat.mean(axis=0), flat.std(axis=0)
    scale = np.where(spread > 1e-9, spread, np.inf)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit((flat - centre) / scale, labels)
    return {
        name: np.asarray(model.predict((part.reshape(-1, width) - centre) / scale)).reshape(part.shape[:2])
        for name, part in asked.items()
    }
