"""From sets of images to pools: sorted by condition, and drawn so that what measures a row is in no row."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cellbridge.data.image_sets import ImageSet
from cellbridge.errors import ImageError, did_you_mean
from cellbridge.evaluation.pools import Pool
from cellbridge.evaluation.unpaired import Bounds, thirds

_UNNAMED = "real"
"""What a condition is called that no folder names."""
CONTROL = "control"
"""What the control is called where its folder names no condition."""


@dataclass(frozen=True)
class Sets:
    """What is judged, and by what.

    Parameters
    ----------
    generated : name of each model → its images.
    real : of every condition, nothing that a model was trained on.
    control, train, source : None where they were not given.
    control_condition : the condition of `real` that is the control, where it holds one and none was given apart.
    """

    generated: Mapping[str, ImageSet]
    real: ImageSet
    control: ImageSet | None = None
    train: ImageSet | None = None
    source: ImageSet | None = None
    control_condition: str = "DMSO"

    def named(self) -> dict[str, ImageSet]:
        """Return every set by its role."""
        others = {"control": self.control, "train": self.train, "source": self.source}
        given = {name: found for name, found in others.items() if found is not None}
        return {"real": self.real} | {f"generated {name}": found for name, found in self.generated.items()} | given


@dataclass
class Drawn:
    """The pools of all conditions, as they are drawn; what is learnt of them is added to them.

    Parameters
    ----------
    models : model → condition → its images.
    real : condition → its images; not the control's.
    scored, apart : halves of the control: the first is a row, the second the ceiling, and what is learnt from.
    train : condition → images that a model may have been trained on.
    source : what outputs were made from.
    control : its name, None where there is none.
    bounds : condition → draws that rows are measured against, None where there are too few images.
    learnt : condition → real images that are in no row.
    """

    models: dict[str, dict[str, Pool]]
    real: dict[str, Pool]
    scored: Pool | None
    apart: Pool | None
    train: dict[str, Pool]
    source: Pool | None
    control: str | None
    bounds: dict[str, Bounds | None] = field(default_factory=dict)
    learnt: dict[str, Pool] = field(default_factory=dict)

    @property
    def conditions(self) -> list[str]:
        """What a classifier tells apart, the control first."""
        return [*([] if self.control is None else [self.control]), *self.real]


def draw(sets: Sets, seen: Mapping[str, Pool], *, n: int | None, seed: int) -> Drawn:
    """Sort pools by condition, and draw what each row is measured against."""
    real = _by_condition(sets.real, seen["real"], seed=seed)
    control, halves = _control(sets, seen, real, seed=seed)
    models = {
        name: _matched(_by_condition(found, seen[f"generated {name}"], seed=seed), real, found, control)
        for name, found in sets.generated.items()
    }
    train = {} if sets.train is None else _by_condition(sets.train, seen["train"], seed=seed)
    if len(train) == 1 and len(real) == 1 and _UNNAMED in (*train, *real):
        train = {next(iter(real)): next(iter(train.values()))}
    pools = Drawn(models, real, *halves, train=train, source=seen.get("source"), control=control)
    for name, pool in real.items():
        fewest = min((len(made[name]) for made in models.values() if name in made), default=len(pool))
        sizes = [size for size in (n, fewest, *(len(half) for half in halves if half is not None)) if size is not None]
        parts = thirds(len(pool), seed=seed, most=min(sizes))
        pools.bounds[name], pools.learnt[name] = None, pool
        if parts is not None:
            drawn = [pool.take(rows) for rows in parts]
            ceiling = None if halves[1] is None else halves[1].take(np.arange(len(drawn[0])))
            pools.bounds[name] = Bounds(drawn[0], (drawn[1], drawn[2]), ceiling)
            pools.learnt[name] = pool.take(np.setdiff1d(np.arange(len(pool)), parts[0]))
    return pools


def _by_condition(found: ImageSet, pool: Pool, *, seed: int) -> dict[str, Pool]:
    """Split a set by condition, each in an order drawn by lot, so that its first images are a sample of it."""
    conditions = np.array([name or _UNNAMED for name in found.conditions], dtype=object)
    rng = np.random.default_rng([seed, 5])
    return {str(name): pool.take(rng.permutation(np.flatnonzero(conditions == name))) for name in np.unique(conditions)}


def _control(
    sets: Sets, seen: Mapping[str, Pool], real: dict[str, Pool], *, seed: int
) -> tuple[str | None, tuple[Pool | None, Pool | None]]:
    """Return the control's name and its two halves; it is taken out of the real conditions."""
    if sets.control is not None:
        named = {name for name in sets.control.conditions if name}
        name = named.pop() if len(named) == 1 else CONTROL
        pool = seen["control"].take(np.random.default_rng([seed, 5]).permutation(len(seen["control"])))
        real.pop(name, None)
    elif sets.control_condition in real and len(real) > 1:
        name, pool = sets.control_condition, real.pop(sets.control_condition)
    else:
        return None, (None, None)
    half = len(pool) // 2
    return name, (pool.take(np.arange(half)), pool.take(np.arange(half, len(pool))))


def _matched(made: dict[str, Pool], real: Mapping[str, Pool], found: ImageSet, control: str | None) -> dict[str, Pool]:
    """Give generated conditions the names of real ones: equal names, or the only one where one of the two sides names none."""
    made = {name: pool for name, pool in made.items() if name != control}
    if len(made) == 1 and len(real) == 1 and _UNNAMED in (*made, *real):
        return {next(iter(real)): next(iter(made.values()))}
    for name in made:
        if name not in real:
            raise ImageError(
                f'{found.path}: condition "{name}" has no real images.{did_you_mean(name, real)} Name sub-folders alike on both sides.'
            )
    if not made:
        raise ImageError(f"{found.path}: holds images of the control alone. Give images of a condition.")
    return made
