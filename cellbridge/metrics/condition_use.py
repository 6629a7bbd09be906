"""Is the condition used? Drug swap on effects, what each asked condition looks like, and what another condition would have scored."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.classification import log_odds, target_hits
from cellbridge.metrics.contrasts import draws_interval
from cellbridge.metrics.effects import Effect, cosines
from cellbridge.metrics.intervals import LEVEL, Blocks, Estimate, bootstrap, resampled_means, share, student_mean

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Swap:
    """Two conditions A and B, asked for of the same cells, beside the same figures of the real effects.

    Parameters
    ----------
    cell_cosine : cosine of T_A(x) - T_control(x) with T_B(x) - T_control(x), pooled over cells: Σ <a_i, b_i> / sqrt(Σ |a_i|² Σ |b_i|²).
        1 where the condition changes nothing.
    cosine, real_cosine : cosine of the mean effects of A and B. Two doses of one compound should be near 1 in both.
    excess : cosine less real_cosine; above 0 where outputs differ less by condition than real cells do.
    norm_a, norm_b : length of the model's mean effect over that of the real one, both less their noise; 1 is right, 0 no effect.
    contrast : <a - b, real a - real b> / |real a - real b|², the denominator less its noise: what of the real difference between A and B is in
        the outputs. 0 where the condition is ignored, 1 where it is used as in real cells.
    against : "control" where effects are T(x) - T_control(x), "source" where they are T(x) - x.
    """

    cell_cosine: Estimate | None
    cosine: Estimate | None
    real_cosine: Estimate | None
    excess: Estimate | None
    norm_a: Estimate | None
    norm_b: Estimate | None
    contrast: Estimate | None
    against: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not defined says why."""
        missing = {"not_computed": "an effect is zero, or not distinct from noise"}
        found: dict[str, Any] = {}
        for field in fields(self):
            part = getattr(self, field.name)
            found[field.name] = part.to_dict() if isinstance(part, Estimate) else missing if part is None else part
        return found


@dataclass(frozen=True)
class Asked:
    """What the model did to the same cells when two conditions were asked for: (cell, feature) each, and the cells' blocks.

    Parameters
    ----------
    a, b : T_A(x) - T_control(x) and T_B(x) - T_control(x) in control-standardised features (`effects.against_control`), row by row. Where the
        model was never asked for the control: T(x) - x, with `against="source"`.
    """

    a: Floats
    b: Floats
    blocks: Blocks
    against: str = "control"


def swap(asked: Asked, real_a: Effect, real_b: Effect, *, resamples: int, seed: int, level: float = LEVEL) -> Swap:
    """Judge whether outputs for A and for B differ as real A and B do.

    Parameters
    ----------
    real_a, real_b : as `effects.real_effect` gives them with the same control and seed, in the same features: with one seed, the control that they
        share is drawn alike for both.
    """
    width = asked.a.shape[1]
    both = np.concatenate([asked.a, asked.b], axis=1).astype(np.float64)
    drawn = resampled_means(both, asked.blocks, resamples=resamples, seed=seed + 3)
    model = [both.mean(axis=0)[:width], both.mean(axis=0)[width:]]
    sides = (asked.blocks, min(real_a.blocks, real_b.blocks, key=lambda part: part.count))
    draws = None
    if drawn is not None and real_a.draws is not None and real_b.draws is not None:
        draws = (drawn[:, :width], drawn[:, width:], real_a.draws, real_b.draws)
    vectors = tuple(part[None] for part in (*model, real_a.mean, real_b.mean))
    noise = [0.0] * 5 if draws is None else _noises(draws)
    n = min(len(asked.a), real_a.n, real_b.n)

    def estimate(name: str, low: float, high: float) -> Estimate | None:
        value = float(_STATISTICS[name](vectors, noise)[0])
        if not np.isfinite(value):
            return None
        # A draw carries the noise of the data and once more its own, so twice as much is taken off.
        found = None if draws is None else _STATISTICS[name](draws, [2 * part for part in noise])
        return draws_interval(value, found, sides, n=n, level=level, within=(low, high))

    return Swap(
        cell_cosine=pooled_cosine(asked.a, asked.b, asked.blocks, resamples=resamples, seed=seed, level=level),
        cosine=estimate("cosine", -1.0, 1.0),
        real_cosine=estimate("real_cosine", -1.0, 1.0),
        excess=estimate("excess", -2.0, 2.0),
        norm_a=estimate("norm_a", 0.0, np.inf),
        norm_b=estimate("norm_b", 0.0, np.inf),
        contrast=estimate("contrast", -np.inf, np.inf),
        against=asked.against,
    )


Four = tuple[NDArray[np.float64], ...]


def _noises(draws: Four) -> list[float]:
    """Return Σ se² of the model's two effects, of the real ones, and of the real ones' difference."""
    parts = (*draws, draws[2] - draws[3])
    return [float(part.var(axis=0, ddof=1).sum()) for part in parts]


def _excess(parts: Four, noise: list[float]) -> NDArray[np.float64]:
    return cosines(parts[0], parts[1]) - cosines(parts[2], parts[3])


def _norm(model: int, real: int) -> Any:
    def ratio(parts: Four, noise: list[float]) -> NDArray[np.float64]:
        above = np.maximum((parts[model] ** 2).sum(axis=1) - noise[model], 0.0)
        below = (parts[real] ** 2).sum(axis=1) - noise[real]
        return np.asarray(np.sqrt(above / np.where(below > 0, below, np.nan)))

    return ratio


def _contrast(parts: Four, noise: list[float]) -> NDArray[np.float64]:
    real = parts[2] - parts[3]
    below = (real**2).sum(axis=1) - noise[4]
    return np.asarray(((parts[0] - parts[1]) * real).sum(axis=1) / np.where(below > 0, below, np.nan))


_STATISTICS: Mapping[str, Any] = {
    "cosine": lambda parts, noise: cosines(parts[0], parts[1]),
    "real_cosine": lambda parts, noise: cosines(parts[2], parts[3]),
    "excess": _excess,
    "norm_a": _norm(0, 2),
    "norm_b": _norm(1, 3),
    "contrast": _contrast,
}


def pooled_cosine(
    a: Floats, b: Floats, blocks: Blocks, *, resamples: int, seed: int, level: float = LEVEL
) -> Estimate | None:
    """Estimate Σ <a_i, b_i> / sqrt(Σ |a_i|² Σ |b_i|²) over cells; None where either effect is zero in every cell.

    Parameters
    ----------
    a, b : (cell, …), effects of two conditions on the same cells: features, or images flattened or not.
    """
    flat = [part.reshape(len(part), -1).astype(np.float64) for part in (a, b)]
    table = np.stack([(flat[0] * flat[1]).sum(axis=1), (flat[0] ** 2).sum(axis=1), (flat[1] ** 2).sum(axis=1)], axis=1)
    if not table[:, 1:].any(axis=0).all():
        return None

    def cosine(means: NDArray[np.float64]) -> NDArray[np.float64]:
        lengths = np.sqrt(means[:, 1] * means[:, 2])
        return np.asarray(means[:, 0] / np.where(lengths > 0, lengths, np.nan))

    return bootstrap(table, cosine, blocks, resamples=resamples, seed=seed, level=level)


@dataclass(frozen=True)
class CrossCondition:
    """What outputs look like to the classifier, by the condition that was asked for.

    Parameters
    ----------
    asked, seen : names of the rows and of the columns.
    shares : (asked, seen), share of outputs that are taken for each condition; rows sum to one.
    own : asked → share taken for what was asked; only where the classifier knows it.
    margin : asked → share of own hits less the mean share of the same condition among the outputs for the others; at most 0 where ignored.
    """

    asked: tuple[str, ...]
    seen: tuple[str, ...]
    shares: NDArray[np.float64]
    own: Mapping[str, Estimate]
    margin: Mapping[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        own = {name: part.to_dict() for name, part in self.own.items()}
        margin = {name: part.to_dict() for name, part in self.margin.items()}
        names = {"asked": list(self.asked), "seen": list(self.seen), "shares": self.shares.tolist()}
        return names | {"own": own, "margin": margin}


def cross_condition(
    logits: Mapping[str, Floats],
    names: tuple[str, ...],
    blocks: Mapping[str, Blocks],
    *,
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> CrossCondition:
    """Return the matrix of asked against seen conditions.

    Parameters
    ----------
    logits : asked condition → (cell, condition). Where two hold as many rows, they are taken for the same cells in the same order.
    names : of the classifier's conditions.
    blocks : asked condition → blocks of its cells.
    """
    asked = tuple(logits)
    seen = {name: part.argmax(axis=1) for name, part in logits.items()}
    counts = [np.bincount(seen[name], minlength=len(names)) / len(seen[name]) for name in asked]
    known = [name for name in asked if name in names]
    hits = {(name, of): seen[name] == names.index(of) for name in asked for of in known}
    own = {name: share(hits[name, name], blocks[name], resamples=resamples, seed=seed, level=level) for name in known}
    margin = {}
    for name in known:
        others = [hits[other, name] for other in asked if other != name]
        same_cells = [part.astype(float) for part in others if len(part) == len(hits[name, name])]
        if others and len(same_cells) == len(others):
            difference = hits[name, name] - np.mean(same_cells, axis=0)
            margin[name] = student_mean(difference, blocks[name], level=level)
    return CrossCondition(asked, names, np.array(counts), own, margin)


@dataclass(frozen=True)
class ShuffledGap:
    """What the right condition gains over another one on the same cells: in target hits, and in log odds of target against control."""

    hits: Estimate
    log_odds: Estimate

    def to_dict(self) -> dict[str, Any]:
        return {"hits": self.hits.to_dict(), "log_odds": self.log_odds.to_dict()}


def shuffled_gap(
    logits: Floats, shuffled: Floats, blocks: Blocks, *, target: int, control: int, level: float = LEVEL
) -> ShuffledGap:
    """Estimate how much more the outputs for the target look like it than outputs of the same cells for other conditions do.

    Parameters
    ----------
    logits, shuffled : (cell, condition), row by row of the same source cells.
    """
    hits = target_hits(logits, target).astype(float) - target_hits(shuffled, target)
    odds = log_odds(logits, target, control) - log_odds(shuffled, target, control)
    return ShuffledGap(student_mean(hits, blocks, level=level), student_mean(odds, blocks, level=level))
