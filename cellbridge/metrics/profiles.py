"""Do generated wells find real ones? Mean average precision of well profiles, through copairs.

Reference: Kalinin et al. 2025, "A versatile information retrieval framework for evaluating profile strength and similarity", Nat. Commun. 16:5181.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.effects import Sample, against_control
from cellbridge.metrics.intervals import LEVEL, Blocks, Estimate, student_mean

if TYPE_CHECKING:
    import pandas as pd

NOT_INSTALLED = "copairs is not installed; pip install 'cellbridge[profiles]'"
_CONDITION, _PLATE, _ORIGIN, _MOA = "Metadata_Condition", "Metadata_Plate", "Metadata_Origin", "Metadata_MoA"


@dataclass(frozen=True)
class Profiles:
    """Wells by their mean features.

    Parameters
    ----------
    vectors : (well, feature), in standard deviations of the same plate's control.
    plates, conditions, wells : (well,), names; a well's is unique over plates.
    """

    vectors: NDArray[np.float64]
    plates: NDArray[Any]
    conditions: NDArray[Any]
    wells: NDArray[Any]

    def take(self, rows: NDArray[Any]) -> "Profiles":
        """Return some of the wells, by number or by a mask."""
        return Profiles(self.vectors[rows], self.plates[rows], self.conditions[rows], self.wells[rows])


@dataclass(frozen=True)
class Retrieved:
    """Mean average precision of the profiles of one condition, or of one mechanism of action.

    Parameters
    ----------
    precision : mean of the queries' average precision; 1 where every positive is nearer than every negative.
    chance : mean precision of a random order of as many positives and negatives.
    p : of a precision as high in a random order (copairs), not below what it can be at all.
    smallest_p : the smallest p that so few profiles can give.
    corrected_p : p by Benjamini and Hochberg over the conditions asked for together.
    """

    precision: Estimate
    chance: float
    p: float
    smallest_p: float
    corrected_p: float
    n_queries: int
    n_positives: float
    n_negatives: float

    def to_dict(self) -> dict[str, Any]:
        names = ("chance", "p", "smallest_p", "corrected_p", "n_queries", "n_positives", "n_negatives")
        return {"precision": self.precision.to_dict()} | {name: getattr(self, name) for name in names}


def missing() -> str | None:
    """Return why no precision can be computed here; None where it can."""
    return None if find_spec("copairs") else NOT_INSTALLED


def well_profiles(cells: Sample, conditions: Sequence[str], wells: Sequence[str], *, control: Sample) -> Profiles:
    """Return the mean profile of every well, its cells centred and scaled by the same plate's control cells.

    Parameters
    ----------
    conditions, wells : (cell,); wells are unique over plates. For outputs: the condition asked for, and the wells of the sources.

    Raises
    ------
    ValueError : a plate has no control cell.
    """
    values = against_control(cells, control)
    keys = [f"{well}\x1f{condition}" for well, condition in zip(wells, conditions, strict=True)]
    _, first, codes = np.unique(keys, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), values.shape[1]))
    np.add.at(sums, codes, values)
    names = (np.asarray(part, dtype=object)[first] for part in (cells.plates, conditions, wells))
    return Profiles(sums / np.bincount(codes)[:, None], *names)


def profile_map(
    queries: Profiles,
    real: Profiles,
    *,
    control: str,
    seed: int,
    null_size: int = 10_000,
    level: float = LEVEL,
) -> dict[str, Retrieved] | None:
    """Ask for each condition whether its query profiles find real ones of it before real controls of their own plate.

    Query: a generated well of condition X. Positives: all real wells of X. Negatives: the real control wells of the query's plate, its own source
    among them. Cosine similarity; p by copairs' permutation null. Null rows are queries, too: the untouched sources (labelled X), shifted
    ones, and one half of the real wells with the other as `real` (`split_halves`).

    Parameters
    ----------
    queries : their conditions are what was asked for.
    real : wells of the targets and of the control, on plates that nothing was trained on.
    null_size : random orders; p is at least 1/(null_size + 1).

    Returns
    -------
    condition → result, for conditions that have positives and negatives; None without copairs.
    """
    if missing() is not None:
        return None
    found = {}
    for condition in sorted(set(queries.conditions) - {control}):
        asked = queries.take(queries.conditions == condition)
        pool = real.take((real.conditions == condition) | (real.conditions == control))
        asked = asked.take(np.isin(asked.plates, pool.plates[pool.conditions == control]))
        if len(asked.wells) and (pool.conditions == condition).any():
            rules = _Rules([_CONDITION], [_ORIGIN], [_PLATE], [_CONDITION])
            table = _precisions(_stacked(asked, pool), rules)
            found[condition] = _retrieved(
                table[table[_ORIGIN] == "query"], [_CONDITION], seed=seed, null_size=null_size, level=level
            )
    return _corrected(found)


def consistency_map(
    queries: Profiles,
    real: Profiles,
    moa: Mapping[str, str],
    *,
    compound_of: Callable[[str], str],
    seed: int,
    null_size: int = 10_000,
    level: float = LEVEL,
) -> dict[str, Retrieved] | None:
    """Ask for each mechanism of action whether query profiles find real ones of other compounds with it before all other compounds.

    Parameters
    ----------
    queries : real or generated wells.
    real : wells of active compounds; the control is left out.
    moa : condition → mechanism; conditions without one are left out.
    compound_of : condition → compound; the same compound at another dose is no positive, and no negative either.

    Returns
    -------
    mechanism → result, where another compound of it and one of another mechanism exist; None without copairs.
    """
    if missing() is not None:
        return None
    parts = [part.take(np.isin(part.conditions, list(moa))) for part in (queries, real)]
    if not all(len(part.wells) for part in parts):
        return {}
    table = _stacked(*parts)
    table["Metadata_Compound"] = [compound_of(name) for name in table[_CONDITION]]
    table[_MOA] = [moa[name] for name in table[_CONDITION]]
    rules = _Rules([_MOA], ["Metadata_Compound", _ORIGIN], [], [_MOA, _ORIGIN])
    if not _has_pairs(table):
        return {}
    found = _precisions(table, rules)
    ranked = (found["n_pos_pairs"] > 0) & (found["n_total_pairs"] > found["n_pos_pairs"])
    asked = found[(found[_ORIGIN] == "query") & ranked]
    settings: dict[str, Any] = {"seed": seed, "null_size": null_size, "level": level}
    return _corrected({str(name): _retrieved(part, [_MOA], **settings) for name, part in asked.groupby(_MOA)})


def split_halves(real: Profiles, condition: str, *, seed: int) -> tuple[Profiles, Profiles] | None:
    """Part the real wells of a condition into queries and the rest, the controls staying with the rest: the ceiling of `profile_map`.

    Wells are parted on every plate, so that either half has negatives of its own plates. None with fewer than two wells.
    """
    random, chosen = np.random.default_rng([seed, 14]), np.zeros(len(real.wells), dtype=bool)
    own = random.permutation(np.flatnonzero(real.conditions == condition))
    if len(own) < 2:
        return None
    order = own[np.argsort(real.plates[own].astype(str), kind="stable")]
    chosen[order[::2]] = True
    return real.take(chosen), real.take(~chosen)


@dataclass(frozen=True)
class _Rules:
    """Which profiles are a positive and which a negative pair, by the columns that have to agree and to differ."""

    same: list[str]
    other: list[str]
    negative_same: list[str]
    negative_other: list[str]


def _stacked(queries: Profiles, real: Profiles) -> "pd.DataFrame":
    import pandas as pd

    parts = []
    for origin, part in (("query", queries), ("real", real)):
        columns = {_CONDITION: part.conditions, _PLATE: part.plates, "Metadata_Well": part.wells}
        meta = pd.DataFrame({name: np.asarray(values, dtype=str) for name, values in columns.items()})
        vectors = pd.DataFrame(part.vectors, columns=[f"f{index}" for index in range(part.vectors.shape[1])])
        parts.append(pd.concat([meta.assign(**{_ORIGIN: origin}), vectors], axis=1))
    return pd.concat(parts, ignore_index=True)


def _has_pairs(table: "pd.DataFrame") -> bool:
    """Say whether some query has a real positive of another compound, and some query a real negative."""
    query, real = (table[table[_ORIGIN] == origin] for origin in ("query", "real"))
    compounds = real.groupby(_MOA)["Metadata_Compound"].agg(set)
    positive = any(
        compounds.get(row[_MOA], set()) - {row["Metadata_Compound"]}
        for row in query[[_MOA, "Metadata_Compound"]].to_dict("records")
    )
    return positive and len(set(real[_MOA]) | set(query[_MOA])) > 1


def _precisions(table: "pd.DataFrame", rules: _Rules) -> "pd.DataFrame":
    from copairs.map import average_precision

    meta = table[[name for name in table.columns if name.startswith("Metadata_")]]
    vectors = table[[name for name in table.columns if not name.startswith("Metadata_")]].to_numpy()
    return average_precision(
        meta,
        vectors,
        pos_sameby=rules.same,
        pos_diffby=rules.other,
        neg_sameby=rules.negative_same,
        neg_diffby=rules.negative_other,
        progress_bar=False,
    )


def _retrieved(table: "pd.DataFrame", same: list[str], *, seed: int, null_size: int, level: float) -> Retrieved:
    from copairs.map import mean_average_precision

    usable = table[table["average_precision"].notna() & (table["n_pos_pairs"] > 0)]
    found = mean_average_precision(
        usable, same, null_size=null_size, threshold=1 - LEVEL, seed=seed, progress_bar=False, max_workers=1
    )
    positives, pairs = usable["n_pos_pairs"].to_numpy(int), usable["n_total_pairs"].to_numpy(int)
    values = usable["average_precision"].to_numpy(float)
    codes = np.unique(usable["Metadata_Well"], return_inverse=True)[1]
    # copairs draws one null per pair of numbers, so queries that share theirs are perfect together in one order of the many.
    by_chance = np.prod([1 / comb(n, m) for n, m in sorted(set(zip(pairs.tolist(), positives.tolist(), strict=True)))])
    smallest = max(1 / (null_size + 1), float(by_chance))
    p = max(float(found["p_value"].iloc[0]), smallest)
    return Retrieved(
        precision=_over_wells(values, codes, level=level),
        chance=float(np.mean([_random_precision(m, n) for n, m in zip(pairs, positives, strict=True)])),
        p=p,
        smallest_p=smallest,
        corrected_p=p,
        n_queries=len(usable),
        n_positives=float(positives.mean()),
        n_negatives=float((pairs - positives).mean()),
    )


def _over_wells(values: NDArray[np.float64], codes: NDArray[np.integer], *, level: float) -> Estimate:
    """Estimate a mean over query wells by Student's interval, cut to [0, 1]."""
    found = student_mean(values, Blocks(codes.astype(np.int64), "wells"), level=level)
    if found.low is None or found.high is None:
        return found
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0), found.n, found.resampled)


def _random_precision(positives: int, pairs: int) -> float:
    """Return the expected average precision of a random order: E = Σ_k P(hit at k) E(precision at k | hit at k), averaged over positives.

    1/L Σ_k (1 + (k - 1)(M - 1)/(L - 1))/k for M positives among L.
    """
    ranks = np.arange(1, pairs + 1)
    others = (ranks - 1) * (positives - 1) / max(pairs - 1, 1)
    return float(((1 + others) / ranks).mean())


def _corrected(found: dict[str, Retrieved]) -> dict[str, Retrieved]:
    from scipy.stats import false_discovery_control

    if not found:
        return found
    adjusted = false_discovery_control([part.p for part in found.values()])
    return {name: replace(part, corrected_p=float(p)) for (name, part), p in zip(found.items(), adjusted, strict=True)}
