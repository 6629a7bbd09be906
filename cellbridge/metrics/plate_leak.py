"""Does an output still look like its source's plate? A classifier of plates, trained on real control cells, is asked.

A model that carries another plate's staining into its outputs (that of its training plates, say) is seen here, and so is one whose outputs
tell no plate at all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.metrics.classification import balanced_accuracy
from cellbridge.metrics.contrasts import share_difference
from cellbridge.metrics.effects import Sample
from cellbridge.metrics.intervals import LEVEL, Estimate, share

Floats = NDArray[np.floating]
_MOST = 4000
"""Control cells that a classifier is trained on, at most."""


@dataclass(frozen=True)
class PlateLeak:
    """What a classifier of plates says.

    Parameters
    ----------
    accuracy : balanced accuracy on real control cells of wells (or sites) that it was not trained on: how much of a plate can be seen at all.
    chance : 1 / number of plates.
    own : share of outputs that are taken for their source's plate.
    own_real : the same share of real target cells; a compound hides a part of what tells a plate.
    gap : own - own_real; below 0 where outputs have lost, or changed, their plate.
    wrong : the plate that outputs of another plate are most often taken for, and its share of these; None where outputs are never mistaken.
    """

    plates: tuple[str, ...]
    accuracy: Estimate
    chance: float
    own: Estimate
    own_real: Estimate | None
    gap: Estimate | None
    wrong: tuple[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is not defined says why."""
        missing = {"not_computed": "there are no real target cells"}
        found: dict[str, Any] = {"plates": list(self.plates), "chance": self.chance}
        for name in ("accuracy", "own", "own_real", "gap"):
            part = getattr(self, name)
            found[name] = missing if part is None else part.to_dict()
        wrong = None if self.wrong is None else {"plate": self.wrong[0], "share": self.wrong[1]}
        return found | {"wrong": wrong}


def plate_leak(
    outputs: Sample,
    control: Sample,
    real: Sample | None,
    *,
    wells: tuple[NDArray[Any], NDArray[Any]],
    resamples: int,
    seed: int,
    level: float = LEVEL,
) -> PlateLeak | None:
    """Ask a classifier of plates about outputs; None with fewer than two plates, or with one well and site on a plate.

    Multinomial logistic regression on standardised features. It is trained twice, on either half of the wells, and asked about the other half's
    control cells and about the outputs that were made of them: of no source cell was its classifier told. Real target cells are other wells,
    and both are asked (the mean of their probabilities counts).

    Parameters
    ----------
    outputs : features of outputs, and the plates of their sources.
    control : real control cells of two or more plates, the sources among them; training plates may be added.
    real : real target cells; None where there are none.
    wells : names of the wells of `outputs`' sources and of `control`, unique over plates; sites where a plate has one control well.

    References
    ----------
    Scikit-learn's LogisticRegression, L2 at C = 1.
    """
    names = np.unique(control.plates)
    halves = halves_of_wells(control.plates, wells[1], seed=seed)
    if len(names) < 2 or halves is None:
        return None
    seen, of_control, of_real = _asked(outputs, control, real, names=names, halves=_Halves(*wells, halves), seed=seed)
    settings = {"resamples": resamples, "seed": seed}
    true = _codes(names, outputs.plates)
    own_real = gap = None
    if of_real is not None and real is not None:
        known = of_real == _codes(names, real.plates)
        own_real = share(known, real.blocks, level=level, **settings)
        gap = share_difference(seen == true, known, (outputs.blocks, real.blocks), level=level)
    return PlateLeak(
        plates=tuple(map(str, names)),
        accuracy=balanced_accuracy(of_control, _codes(names, control.plates), control.blocks, **settings),
        chance=1 / len(names),
        own=share(seen == true, outputs.blocks, level=level, **settings),
        own_real=own_real,
        gap=gap,
        wrong=_most_wrong(names, seen, true),
    )


@dataclass(frozen=True)
class _Halves:
    """Names of the wells of outputs' sources and of control cells, and which control cells lie in the second half of the wells."""

    of_outputs: NDArray[Any]
    of_control: NDArray[Any]
    second: NDArray[np.bool_]

    def of_sources(self) -> NDArray[np.bool_]:
        """Return which outputs' sources lie in the second half; a well that is not among the control's counts as of the first."""
        side = dict(zip(self.of_control.tolist(), self.second.tolist(), strict=True))
        return np.array([side.get(well, False) for well in self.of_outputs.tolist()])


def _asked(
    outputs: Sample, control: Sample, real: Sample | None, *, names: NDArray[Any], halves: _Halves, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """Return which plate outputs, control cells and real target cells are taken for, each by a classifier that was not told of their wells."""
    labels, side = _codes(names, control.plates), halves.of_sources()
    seen, of_control = np.zeros(len(outputs.features), np.int64), np.zeros(len(control.features), np.int64)
    of_real = None if real is None or len(real.features) == 0 else np.zeros((len(real.features), len(names)))
    for half in (False, True):
        told = np.flatnonzero(halves.second == half)
        told = np.sort(np.random.default_rng([seed, 9]).permutation(told)[:_MOST])
        ask = _classifier(control.features[told], labels[told])
        for answers, features, other in (
            (of_control, control.features, halves.second != half),
            (seen, outputs.features, side != half),
        ):
            if other.any():
                answers[other] = ask(features[other]).argmax(axis=1)
        if of_real is not None and real is not None:
            of_real += ask(real.features)
    return seen, of_control, None if of_real is None else np.asarray(of_real.argmax(axis=1))


def halves_of_wells(plates: NDArray[Any], wells: NDArray[Any], *, seed: int) -> NDArray[np.bool_] | None:
    """Put each plate's wells into two halves, (cell,); None where a plate has a single one."""
    random = np.random.default_rng([seed, 10])
    second = np.zeros(len(plates), dtype=bool)
    for plate in np.unique(plates):
        own = np.unique(wells[np.asarray(plates) == plate])
        if len(own) < 2:
            return None
        chosen = random.permutation(own)[: len(own) // 2]
        second |= (np.asarray(plates) == plate) & np.isin(wells, chosen)
    return second


def _classifier(features: Floats, labels: NDArray[np.integer]) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(features, labels)
    return model.predict_proba


def _codes(names: NDArray[Any], plates: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of each cell's plate; -1 for one that the classifier does not know."""
    number = {name: code for code, name in enumerate(names.tolist())}
    return np.array([number.get(plate, -1) for plate in np.asarray(plates).tolist()])


def _most_wrong(names: NDArray[Any], seen: NDArray[np.integer], true: NDArray[np.integer]) -> tuple[str, float] | None:
    """Return the plate that other plates' outputs are most often taken for, and how often."""
    shares = [float((seen[true != code] == code).mean()) if (true != code).any() else 0.0 for code in range(len(names))]
    worst = int(np.argmax(shares))
    return (str(names[worst]), shares[worst]) if shares[worst] > 0 else None
