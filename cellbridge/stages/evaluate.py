"""`cellbridge evaluate`: what translated cells are worth, beside the null rows, at one n. Numbers and figures; `report` renders them.

Inputs are only read. Results of an earlier evaluation are removed before new ones are made, and `metrics.json` is written last: what
lies in the directory always belongs together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from cellbridge.data.store import describe
from cellbridge.evaluation.inputs import (
    GENERATED,
    clear,
    describe_inputs,
    models_behind,
    numbered,
    require_evaluation_directory,
    require_weights,
)
from cellbridge.progress import bar
from cellbridge.runs import RunDir, begin, write_json, write_text
from cellbridge.settings import Section, Seed, dump
from cellbridge.translating.places import trajectories

if TYPE_CHECKING:
    from cellbridge.data.comparison import Comparison
    from cellbridge.evaluation.arms import Sights
    from cellbridge.evaluation.inputs import Described
    from cellbridge.evaluation.target import Target

FORMAT = 3
"""Of metrics.json; `report` reads this one."""
_SINGLE = ("reference", "truth", "unconditional")
_SEVERAL = ("translated", "round_trip", "x_T_references")


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[Path, ...], BeforeValidator(_as_tuple)]
"""One path, or several."""


class Config(Section):
    """Settings of `evaluate`."""

    translated: Annotated[Paths, Field(min_length=1)]
    """The store that `translate` wrote; several for several methods in one table, told apart by Metadata_Model. Trajectories that lie beside
    one are judged and shown, too."""
    reference: Path
    """The store of real cells that was translated."""
    classifier: Path
    """The run of `train-classifier`, trained on other plates."""
    truth: Path | None = None
    """The store of counterfactual cells, where the truth is known."""
    round_trip: Paths = ()
    """The translated store (each one), translated back to the condition of its sources: how much of a cell survives the way there and back."""
    unconditional: Path | None = None
    """A store of cells that a model made without a condition, for a null row."""
    x_T_references: Paths = ()
    """The store that `translate --set x_T_references=N` wrote beside its result (`NAME_x_T.zarr`)."""
    generated: tuple[Path, ...] = ()
    """Stores of generated cells, to compare where their noise came from: N(0, I), a fitted prior, inversion."""
    split: str = "test"
    n: PositiveInt | None = None
    """Source cells per row; None takes all that every model translated."""
    seed: Seed = 0
    extractors: tuple[str, ...] = ()
    """Further features: morphology, cp_measure, timm:MODEL@FILE, torchvision:MODEL@FILE … (each costs seconds to minutes)."""
    inception_weights: Path | None = None
    """torch-fidelity's Inception state dict; without it, what needs it is not computed."""
    moa: dict[str, str] = Field(default_factory=dict)
    """Condition → mechanism of action, where it is known: whether the mechanism is seen."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap draws of each interval."""
    model_plates: Literal["disjoint", "shared"] = "disjoint"
    """`shared` allows models and a classifier that were trained on other wells of the plates under judgement; the report says so."""
    figures: bool = True
    """Whether to draw pictures of cells and of x_T."""
    device: str = "auto"


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Score every target of the translated store and write `out/metrics.json`, `out/table.txt` and `out/figures`.

    Raises
    ------
    StoreError, ModelError : the stores and the classifier do not show the same channels at the same size, or do not belong together.
    LeakError : a model or the classifier was trained on plates that are under judgement.
    NumericalError : x_T is not finite.
    RunError : `out` holds something else than an evaluation.
    """
    inputs = _inputs(config)
    require_evaluation_directory(out, inputs.values())
    described = describe_inputs(_stores(config), config.classifier)
    require_weights(config.inception_weights)

    from cellbridge.data.comparison import compare
    from cellbridge.data.store import open_store
    from cellbridge.data.translations import stores_by_model
    from cellbridge.evaluation.noise import require_finite
    from cellbridge.metrics.table import text_table

    stores = {name: open_store(info.path) for name, info in described.stores.items()}
    translated = [stores[name] for name in described.in_role("translated")]
    comparisons = compare(
        translated, stores["reference"], stores.get("truth"), split=config.split, n=config.n, seed=config.seed
    )
    models, notes = models_behind(described, stores["reference"], comparisons, plates=config.model_plates)
    require_finite(stores_by_model(translated), comparisons)
    sights = _sights(config, described, stores)
    run_dir = RunDir(out)
    clear(run_dir)
    sums = begin(run_dir, config=dump(config), seed=config.seed, inputs=inputs)
    metrics = _head(config, sums, sights) | {"models": models, "notes": notes}
    metrics["classifier"] |= _accuracy(config, sights, comparisons)
    metrics |= _judged(config, sights, comparisons, metrics["classifier"], out=out)
    table = text_table(metrics)
    write_text(out / "table.txt", table + "\n")
    write_json(run_dir.metrics, metrics)
    labels = {f"{t['target']} ({v['model']})": v["label"] for t in metrics["targets"] for v in t["verdicts"]}
    return {"table": table, "verdicts": labels, "metrics": str(run_dir.metrics)}


def _judged(
    config: Config,
    sights: "Sights",
    comparisons: "list[Comparison]",
    classifier: Mapping[str, Any],
    *,
    out: Path,
) -> dict[str, Any]:
    """Judge target by target, then all of them together, and write the values of single cells and the figures."""
    import pandas as pd

    from cellbridge.evaluation.condition import judge_conditions
    from cellbridge.evaluation.noise_origins import judge_origins
    from cellbridge.evaluation.scoring import cell_table, score
    from cellbridge.evaluation.target import Draws, make_target
    from cellbridge.evaluation.trajectories import judge_trajectories, save_pictures
    from cellbridge.evaluation.wells import judge_wells
    from cellbridge.tables import write_cells

    targets, seen, cells = [], [], []
    with bar("evaluate", total=len(comparisons), unit="targets") as progress:
        for comparison in comparisons:
            progress.show(f"{comparison.target}, {len(comparison.sources)} cells")
            target = make_target(sights, comparison, Draws(config.resamples, config.seed))
            found = score(target, classifier)
            targets.append(found.metrics | {"figures": _figures(target, out / "figures") if config.figures else []})
            cells.append(cell_table(target, found))
            seen.append(target.without_images())
            progress.advance()
    sections = [*judge_conditions(seen), *judge_wells(seen, config.moa)]
    if sights.generated:
        sections.append(judge_origins(seen, sights.generated))
    ways = judge_trajectories(sights, Draws(config.resamples, config.seed))
    name = write_cells(pd.concat(cells, ignore_index=True), out)
    judged = {"targets": targets, "sections": [*sections, *([] if ways is None else [ways])], "cells": name}
    if ways is None or not config.figures:
        return judged
    frames = {model: sight.store for model, sight in sights.trajectories.items()}
    return judged | {"trajectories": save_pictures(frames, out / "figures")}


def _stores(config: Config) -> dict[str, Path]:
    """Return every store by its role; trajectories are found beside the translation that they are of."""
    named = {name: path for name in _SINGLE if (path := getattr(config, name)) is not None}
    for role in _SEVERAL:
        named |= numbered(role, getattr(config, role))
    ways = [way for path in config.translated if (way := trajectories(path)).is_dir() and _of_one(way, path)]
    named |= numbered("trajectories", ways)
    return named | {f"{GENERATED}{number}": path for number, path in enumerate(config.generated, start=1)}


def _of_one(way: Path, translated: Path) -> bool:
    """Say whether frames are of the translation that they lie beside, and not left from another one."""
    return describe(way).attributes.get("config") == describe(translated).attributes.get("config")


def _inputs(config: Config) -> dict[str, Path]:
    weights = {} if config.inception_weights is None else {"inception weights": config.inception_weights}
    return _stores(config) | {"classifier": config.classifier} | weights


def _sights(config: Config, described: "Described", stores: "Mapping[str, Any]") -> "Sights":
    """See every store through the judges; what was made beside a translated store goes with the models of that one."""
    from cellbridge.data.translations import stores_by_model
    from cellbridge.evaluation.arms import Sights
    from cellbridge.evaluation.judges import open_judges
    from cellbridge.evaluation.sight import Sight

    judges = open_judges(
        config.classifier,
        stores["reference"],
        extractors=config.extractors,
        inception_weights=config.inception_weights,
        device=config.device,
    )
    seen = {name: Sight(store, judges) for name, store in stores.items()}
    of_model: dict[str, str] = {}
    for name in described.beside:
        of_model |= dict.fromkeys(stores_by_model([stores[name]]), name)
    beside = {
        role: {model: found[role] for model, name in of_model.items() if role in (found := described.beside[name])}
        for role in ("round_trip", "x_T_references", "trajectories")
    }
    return Sights(
        judges,
        seen["reference"],
        {model: seen[name] for model, name in of_model.items()},
        truth=seen.get("truth"),
        unconditional=seen.get("unconditional"),
        round_trips={model: stores[name] for model, name in beside["round_trip"].items()},
        x_T_references={model: stores[name] for model, name in beside["x_T_references"].items()},
        trajectories={model: seen[name] for model, name in beside["trajectories"].items()},
        generated=tuple(sight for name, sight in seen.items() if name.startswith(GENERATED)),
    )


def _head(config: Config, sums: Mapping[str, str], sights: "Sights") -> dict[str, Any]:
    from importlib import metadata

    from cellbridge.metrics.intervals import LEVEL

    info, judges = sights.reference.store.info, sights.judges
    packages = ("cellbridge", "torch", "torch-fidelity", "numpy", "scipy")
    inception = judges.missing.get("inception")
    return {
        "format": FORMAT,
        "kind": "evaluation",
        "input_kind": "stores",
        "seed": config.seed,
        "split": config.split,
        "resamples": config.resamples,
        "level": LEVEL,
        "channels": list(info.channels),
        "control": info.control,
        "extractors": [{"name": part.name, "sha256": part.sha256} for part in judges.extractors],
        "inception": None if inception is None else {"not_computed": inception},
        "not_computed": {name: why for name, why in judges.missing.items() if name != "inception"},
        "classifier": {"conditions": list(judges.conditions)},
        "sections": [],
        "versions": {name: metadata.version(name) for name in packages},
        "inputs": dict(sums),
    }


def _accuracy(config: Config, sights: "Sights", comparisons: "list[Comparison]") -> dict[str, Any]:
    """Judge the classifier on real cells of the split that nothing was generated from."""
    import numpy as np

    from cellbridge.data.comparison import held_out
    from cellbridge.evaluation.arms import blocks_of_rows
    from cellbridge.metrics.classification import accuracy

    reference, names = sights.reference, list(sights.judges.conditions)
    used = np.unique(np.concatenate([c.sources for c in comparisons]))
    rows, words = held_out(reference.store, names, split=config.split, generated_from=used)
    if len(rows) == 0:
        return {"balanced_accuracy": {"not_computed": f"no real cell of {names} in split {config.split}"}}
    labels = np.array([names.index(name) for name in reference.store.condition_names[rows]])
    blocks = blocks_of_rows(reference.store, rows)
    logits = reference.seen(rows).logits
    found = accuracy(logits, labels, names, blocks, resamples=config.resamples, seed=config.seed)
    for name, entry in found["per_condition"].items():
        entry["held_out"] = words[name]
    return found


def _figures(target: "Target", directory: Path) -> list[dict[str, str]]:
    from cellbridge.evaluation.noise import noises_of
    from cellbridge.figures import cell_pictures, noise_pictures, save_panels

    reference, comparison = target.reference, target.comparison
    extractor = target.sights.judges.extractors[0].name
    panels = cell_pictures(reference, comparison, target.arms, extractor=extractor)
    translated = {model: sight.store for model, sight in target.sights.translated.items()}
    panels |= noise_pictures(noises_of(translated, comparison))
    return save_panels(panels, directory, target=comparison.target)
