"""What is judged by what: the inputs of an evaluation, held against each other by their JSON alone, and the directory it goes to.

Nothing here reads an image or imports torch, so that inputs that do not fit end the command in a second.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellbridge.data.lineage import made_from, require_made_from, shared_plates, training_plates
from cellbridge.data.store import StoreInfo, describe
from cellbridge.errors import ModelError, RunError, StoreError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.runs import RunDir, fingerprint, is_taken

if TYPE_CHECKING:
    from cellbridge.data.comparison import Comparison
    from cellbridge.data.store import Store

_MADE_FROM_REFERENCE = ("translated", "truth", "x_T_references", "trajectories")
_BESIDE = ("round_trip", "x_T_references", "trajectories")
"""Roles of stores that were made beside, or from, one of the translated stores."""

GENERATED = "generated "
"""What the names of stores of generated cells begin with."""


@dataclass(frozen=True)
class Described:
    """What the inputs say of themselves.

    Parameters
    ----------
    card : of the classifier.
    stores : what each store holds, by its role; of several in one role the second is "translated 2", and so on.
    silent : stores that do not say what they were made from.
    beside : name of a translated store → role → name of the store that was made beside or from it.
    """

    card: Mapping[str, Any]
    stores: Mapping[str, StoreInfo]
    silent: tuple[Path, ...]
    beside: Mapping[str, Mapping[str, str]]

    def in_role(self, role: str) -> dict[str, StoreInfo]:
        """Return the stores in one role."""
        return {name: info for name, info in self.stores.items() if role_of(name) == role}


def numbered(role: str, paths: Iterable[Path]) -> dict[str, Path]:
    """Name stores by their role, all but the first with a number: "translated", "translated 2" …"""
    return {role if number == 1 else f"{role} {number}": path for number, path in enumerate(paths, start=1)}


def role_of(name: str) -> str:
    """Return the role of a store that `numbered` named."""
    return name.split(" ")[0]


def require_evaluation_directory(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse a directory that holds something else than an evaluation, whole or interrupted, or that is not apart from the inputs.

    Raises
    ------
    RunError : naming what is there.
    """
    import yaml

    require_apart(out, inputs)
    require_directory(out)
    if not is_taken(out):
        return
    try:
        written = yaml.safe_load(RunDir(out).config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        written = None
    ours = isinstance(written, dict) and {"translated", "reference", "classifier"} <= set(written)
    if not ours or RunDir(out).events.exists() or RunDir(out).model.exists():
        raise RunError(f"{out}: holds something else than an evaluation. Choose another --out.")


def clear(run_dir: RunDir) -> None:
    """Remove the results of an earlier evaluation, its numbers first."""
    tables = [run_dir.path / name for name in ("table.txt", "cells.parquet", "cells.csv")]
    for file in (run_dir.metrics, run_dir.report, *tables):
        file.unlink(missing_ok=True)
    for kind in ("*.png", "*.gif"):
        for figure in (run_dir.path / "figures").glob(kind):
            figure.unlink()


def describe_inputs(stores: Mapping[str, Path], classifier: Path) -> Described:
    """Read what stores and classifier say of themselves, and hold them against each other.

    Parameters
    ----------
    stores : "reference", "translated" and, where given, "truth", "round_trip", "unconditional" and "x_T_references", numbered where
        there are several in one role; any others are stores of generated cells.

    Raises
    ------
    StoreError, ModelError : they do not show the same channels at the same size, or do not belong together.
    """
    infos = {name: describe(path) for name, path in stores.items()}
    card = _card(classifier)
    wanted = (infos["reference"].channels, infos["reference"].size_px)
    shown = {classifier: (tuple(card["channels"]), card["size_px"])}
    shown |= {info.path: (info.channels, info.size_px) for info in infos.values()}
    for path, found in shown.items():
        if found != wanted:
            kind = ModelError if path == classifier else StoreError
            raise kind(
                f"{path}: shows {', '.join(found[0])} at {found[1]} px, the reference store "
                f"{', '.join(wanted[0])} at {wanted[1]} px. Make both from one prepared store."
            )
    roles = {name: role_of(name) for name in infos}
    made = [infos[name] for name, role in roles.items() if role in _MADE_FROM_REFERENCE or name.startswith(GENERATED)]
    silent = require_made_from(infos["reference"], made)
    translated = {name: infos[name] for name, role in roles.items() if role == "translated"}
    beside: dict[str, dict[str, str]] = {name: {} for name in translated}
    for name, role in roles.items():
        if role in _BESIDE:
            of = translated_behind(infos[name], translated, role=role)
            silent += require_made_from(infos[of], [infos[name]]) if role == "round_trip" else []
            beside[of].setdefault(role, name)
    return Described(card, infos, tuple(silent), beside)


def translated_behind(info: StoreInfo, translated: Mapping[str, StoreInfo], *, role: str) -> str:
    """Return which translated store another was made from (a round trip) or beside; the first where none says so."""
    for name, candidate in translated.items():
        if role == "round_trip" and made_from(info) == fingerprint(candidate.path):
            return name
        if role != "round_trip" and info.attributes.get("config") == candidate.attributes.get("config") is not None:
            return name
    return next(iter(translated))


def require_weights(path: Path | None) -> None:
    """Refuse a weights file that is not there."""
    if path is not None and not path.is_file():
        raise ModelError(f"{path}: no such weights file. Leave inception_weights out, or give the file.")


def _card(classifier: Path) -> dict[str, Any]:
    """Read what a `train-classifier` run says of its model."""
    directory = RunDir(classifier).require_model()
    try:
        card: dict[str, Any] = json.loads((directory / "cellbridge.json").read_text(encoding="utf-8"))
        kind = card["kind"]
        if kind == "classifier":
            _ = card["channels"], card["size_px"], card["conditions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{directory}/cellbridge.json: cannot be read ({type(error).__name__}: {error}). Train the classifier again."
        ) from None
    if kind != "classifier":
        raise ModelError(
            f"{classifier}: holds a model of kind {kind!r}, expected a classifier. Give the run of `cellbridge train-classifier`."
        )
    return card


def models_behind(
    described: Described, reference: "Store", comparisons: "list[Comparison]", *, plates: str
) -> tuple[dict[str, Any], list[str]]:
    """Return which plates every model was trained on, after refusing those that are under judgement, and in words what a reader must know.

    Parameters
    ----------
    plates : "shared" allows models that were trained on other wells of the plates under judgement, "disjoint" does not.

    Raises
    ------
    LeakError : a model or the classifier was trained on a plate under judgement.
    """
    judged = sorted(
        {str(plate) for c in comparisons for rows in (c.sources, c.real) for plate in reference.plates[rows]}
    )
    trained_on: dict[str, list[str] | None] = {}
    shared: dict[str, list[str]] = {}
    for name, info in described.in_role("translated").items():
        seen_by = training_plates(described.card, info)
        shared |= shared_plates(seen_by, judged, allowed=plates == "shared")
        differs = {model for model, seen in seen_by.items() if trained_on.get(model, seen) != seen}
        trained_on |= {f"{model} ({name})" if model in differs else model: seen for model, seen in seen_by.items()}
    for name, info in described.stores.items():
        if name.startswith(GENERATED):
            of_store = {f"{model} ({name})": seen for model, seen in training_plates(described.card, info).items()}
            trained_on |= {model: seen for model, seen in of_store.items() if not model.startswith("classifier ")}
            shared |= shared_plates(of_store, judged, allowed=plates == "shared")
    notes = [f"{path}: does not say which store it was made from." for path in described.silent]
    notes += [
        f"the {name} was trained on other wells of plates under judgement ({', '.join(seen)}): allowed by model_plates=shared."
        for name, seen in shared.items()
    ]
    notes += [f"training plates of the {name}: not known." for name, seen in trained_on.items() if seen is None]
    return {"plates": plates, "under_judgement": judged, "trained_on": trained_on, "shared": shared}, notes
