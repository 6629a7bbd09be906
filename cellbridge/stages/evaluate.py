"""`cellbridge evaluate`: what translated cells are worth, beside the null rows, at one n. Numbers and figures; `report` renders them.

Inputs are only read. Results of an earlier evaluation are removed before new ones are made, and `metrics.json` is written last: what
lies in the directory always belongs together.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from cellbridge.data.lineage import require_made_from, shared_plates, training_plates
from cellbridge.data.store import StoreInfo, describe
from cellbridge.errors import ModelError, NumericalError, RunError, StoreError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.runs import RunDir, begin, is_taken, write_json, write_text
from cellbridge.settings import Section, Seed, dump

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from cellbridge.data.comparison import Comparison
    from cellbridge.data.store import Store
    from cellbridge.metrics.features import Extractor
    from cellbridge.metrics.scorecard import Arm
    from cellbridge.plots.panels import Panel

FORMAT = 2
"""Of metrics.json; `report` reads this one."""
_STORES = ("translated", "reference", "truth")
_STANDARD_CELLS = 1000
"""Training cells that the extractor's features are standardised on, at most."""


class Config(Section):
    """Settings of `evaluate`."""

    translated: Path
    """The store that `translate` wrote."""
    reference: Path
    """The store of real cells that was translated."""
    classifier: Path
    """The run of `train-classifier`, trained on other plates."""
    truth: Path | None = None
    """The store of counterfactual cells, where the truth is known."""
    split: str = "test"
    n: PositiveInt | None = None
    """Source cells per row; None takes all that every model translated."""
    seed: Seed = 0
    inception_weights: Path | None = None
    """torch-fidelity's Inception state dict; without it, what needs it is not computed."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap draws of each interval."""
    model_plates: Literal["disjoint", "shared"] = "disjoint"
    """`shared` allows models and a classifier that were trained on other wells of the plates under judgement; the report says so."""
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
    _check_out(out, inputs)
    card, infos, silent = _check(config)

    from cellbridge.data.comparison import compare
    from cellbridge.data.store import open_store
    from cellbridge.metrics.table import text_table

    stores: dict[str, Store] = {name: open_store(info.path) for name, info in infos.items()}
    reference = stores["reference"]
    comparisons = compare(
        stores["translated"], reference, stores.get("truth"), split=config.split, n=config.n, seed=config.seed
    )
    models = _models(config, card, stores, comparisons)
    _require_finite(stores["translated"], comparisons)
    judges = _judges(config, reference)
    run_dir = RunDir(out)
    _clear(run_dir)
    sums = begin(run_dir, config=dump(config), seed=config.seed, inputs=inputs)
    metrics = _head(config, sums, reference, models, judges)
    metrics["notes"] = [f"{path}: does not say which store it was made from." for path in silent] + _of_models(models)
    metrics["classifier"] |= _classifier_accuracy(config, reference, judges, comparisons)
    metrics["targets"] = [
        _evaluate(config, stores, judges, comparison, metrics["classifier"], figures=out / "figures")
        for comparison in comparisons
    ]
    table = text_table(metrics)
    write_text(out / "table.txt", table + "\n")
    write_json(run_dir.metrics, metrics)
    labels = {f"{t['target']} ({v['model']})": v["label"] for t in metrics["targets"] for v in t["verdicts"]}
    return {"table": table, "verdicts": labels, "metrics": str(run_dir.metrics)}


def _inputs(config: Config) -> dict[str, Path]:
    named = {
        "translated": config.translated,
        "reference": config.reference,
        "classifier": config.classifier,
        "truth": config.truth,
        "inception weights": config.inception_weights,
    }
    return {name: path for name, path in named.items() if path is not None}


def _check_out(out: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse a directory that holds something else than an evaluation, whole or interrupted."""
    import yaml

    require_apart(out, inputs.values())
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


def _clear(run_dir: RunDir) -> None:
    """Remove the results of an earlier evaluation, its numbers first."""
    for file in (run_dir.metrics, run_dir.report, run_dir.path / "table.txt"):
        file.unlink(missing_ok=True)
    for figure in (run_dir.path / "figures").glob("*.png"):
        figure.unlink()


def _check(config: Config) -> tuple[dict[str, Any], dict[str, StoreInfo], list[Path]]:
    """Hold the inputs against each other, by their JSON alone.

    Returns
    -------
    the classifier's card, what the stores hold, and the stores that do not say what they were made from.
    """
    infos = {name: describe(path) for name in _STORES if (path := getattr(config, name))}
    card = _card(config.classifier)
    wanted = (infos["reference"].channels, infos["reference"].size_px)
    shown = {"classifier": (tuple(card["channels"]), card["size_px"])}
    shown |= {name: (info.channels, info.size_px) for name, info in infos.items()}
    for name, found in shown.items():
        if found != wanted:
            kind = ModelError if name == "classifier" else StoreError
            raise kind(
                f"{getattr(config, name)}: shows {', '.join(found[0])} at {found[1]} px, the reference store "
                f"{', '.join(wanted[0])} at {wanted[1]} px. Make both from one prepared store."
            )
    if config.inception_weights is not None and not config.inception_weights.is_file():
        raise ModelError(
            f"{config.inception_weights}: no such weights file. Leave inception_weights out, or give the file."
        )
    made = [info for name, info in infos.items() if name != "reference"]
    return card, infos, require_made_from(infos["reference"], made)


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


def _models(
    config: Config, card: Mapping[str, Any], stores: "Mapping[str, Store]", comparisons: "list[Comparison]"
) -> dict[str, Any]:
    """Return which plates every model was trained on, after refusing those that are under judgement."""
    plates = stores["reference"].plates
    judged = sorted({str(plate) for c in comparisons for rows in (c.sources, c.real) for plate in plates[rows]})
    trained_on = training_plates(card, stores["translated"].info)
    shared = shared_plates(trained_on, judged, allowed=config.model_plates == "shared")
    return {"plates": config.model_plates, "under_judgement": judged, "trained_on": trained_on, "shared": shared}


def _of_models(models: Mapping[str, Any]) -> list[str]:
    """Say which models have seen plates under judgement, and of which that is not known."""
    shared = [
        f"the {name} was trained on other wells of plates under judgement ({', '.join(plates)}): allowed by model_plates=shared."
        for name, plates in models["shared"].items()
    ]
    unknown = [name for name, plates in models["trained_on"].items() if plates is None]
    return shared + [f"training plates of the {name}: not known." for name in unknown]


def _require_finite(translated: "Store", comparisons: "list[Comparison]") -> None:
    import numpy as np

    for comparison in comparisons:
        for model, rows in comparison.outputs.items():
            x_T = translated.x_T(rows)
            broken = 0 if x_T is None else int((~np.isfinite(x_T)).any(axis=(1, 2, 3)).sum())
            if broken:
                raise NumericalError(
                    f"{translated.info.path}: x_T of {broken} of {len(rows)} cells is not finite ({model}, {comparison.target}). "
                    "Translate them again, with more solver steps or in fp32."
                )


def _judges(config: Config, reference: "Store") -> "dict[str, Any]":
    """Return the extractors, and the classifier's logits as a function of images."""
    import numpy as np
    import torch

    from cellbridge.arms import images_of
    from cellbridge.assembly import load_classifier
    from cellbridge.metrics.features import Extractor, inception, read_foreign_weights, standardised
    from cellbridge.networks.classifier import extractor_name, logits_of, weights_sha256
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    classifier, card = load_classifier(config.classifier, device=device)
    directory = RunDir(config.classifier).model
    own = Extractor(
        extractor_name(directory), weights_sha256(directory), lambda images: classifier.features(images.to(device))
    )
    training = np.flatnonzero((reference.obs["Metadata_Split"] == "train").to_numpy())
    rows = training if len(training) else np.arange(len(reference.obs))
    some = np.sort(np.random.default_rng(0).permutation(rows)[:_STANDARD_CELLS])
    name = f"{len(some)} {'training' if len(training) else 'real'} cells"
    extractors = [standardised(own, images_of(reference, some), name=name)]
    if config.inception_weights is not None:
        state, sha256 = read_foreign_weights(config.inception_weights)
        extractors.append(inception(state, sha256=sha256))

    def logits(images: "Tensor") -> "np.ndarray":
        return torch.cat([logits_of(classifier, part) for part in images.split(256)]).numpy()

    return {"extractors": extractors, "logits": logits, "conditions": list(card["conditions"])}


def _head(
    config: Config, sums: Mapping[str, str], reference: "Store", models: Mapping[str, Any], judges: Mapping[str, Any]
) -> dict[str, Any]:
    from importlib import metadata

    extractors: list[Extractor] = judges["extractors"]
    packages = ("cellbridge", "torch", "torch-fidelity", "numpy", "scipy")
    return {
        "format": FORMAT,
        "kind": "evaluation",
        "seed": config.seed,
        "split": config.split,
        "resamples": config.resamples,
        "channels": list(reference.info.channels),
        "control": reference.info.control,
        "extractors": [{"name": part.name, "sha256": part.sha256} for part in extractors],
        "inception": None if len(extractors) > 1 else {"not_computed": "no weights were given (inception_weights)"},
        "models": dict(models),
        "classifier": {"conditions": judges["conditions"]},
        "versions": {name: metadata.version(name) for name in packages},
        "inputs": dict(sums),
    }


def _classifier_accuracy(
    config: Config, reference: "Store", judges: Mapping[str, Any], comparisons: "list[Comparison]"
) -> dict[str, Any]:
    """Judge the classifier on real cells of the split that nothing was generated from."""
    import numpy as np

    from cellbridge.arms import blocks_of_rows, images_of
    from cellbridge.data.comparison import held_out
    from cellbridge.metrics.classification import accuracy

    names: list[str] = judges["conditions"]
    used = np.unique(np.concatenate([c.sources for c in comparisons]))
    rows, words = held_out(reference, names, split=config.split, generated_from=used)
    if len(rows) == 0:
        return {"balanced_accuracy": {"not_computed": f"no real cell of {names} in split {config.split}"}}
    labels = np.array([names.index(name) for name in reference.condition_names[rows]])
    logits, blocks = judges["logits"](images_of(reference, rows)), blocks_of_rows(reference, rows)
    found = accuracy(logits, labels, names, blocks, resamples=config.resamples, seed=config.seed)
    for name, entry in found["per_condition"].items():
        entry["held_out"] = words[name]
    return found


def _evaluate(
    config: Config,
    stores: "Mapping[str, Store]",
    judges: Mapping[str, Any],
    comparison: "Comparison",
    classifier: Mapping[str, Any],
    *,
    figures: Path,
) -> dict[str, Any]:
    """Score one target and draw its figures."""
    from cellbridge.arms import arms_of, draws_of, truth_of
    from cellbridge.figures import cell_pictures, save_panels
    from cellbridge.metrics.scorecard import Judge, score_target
    from cellbridge.metrics.verdict import judge

    reference, names, target = stores["reference"], judges["conditions"], comparison.target
    truth, of_truth = truth_of(stores, comparison)
    arms, notes = arms_of(stores, comparison, truth, seed=config.seed)
    scoring = Judge(
        extractors=judges["extractors"],
        logits=judges["logits"],
        target=names.index(target) if target in names else None,
        control=names.index(comparison.source) if comparison.source in names else 0,
        resamples=config.resamples,
        seed=config.seed,
    )
    scores = score_target(arms, draws_of(reference, comparison), truth=truth, judge=scoring)
    notes += of_truth + _bias(scores["distances"])
    separable = classifier.get("per_condition", {}).get(target, {}).get("auc")
    models = [arm for arm in arms if arm.kind == "model"]
    words = {"target": target, "control": comparison.source, "separable": separable}
    noise, noise_panels = _noise(config, stores, comparison)
    panels = cell_pictures(reference, comparison, arms, extractor=judges["extractors"][0])
    return {
        "target": target,
        "source": comparison.source,
        "n": len(comparison.sources),
        **_places(reference, comparison),
        "n_lost": comparison.lost,
        "n_unmatched": comparison.unmatched,
        "n_truth": 0 if truth is None else int(truth.known.sum()),
        "n_responders": 0 if truth is None else int((truth.responds & truth.known).sum()),
        "resampled": arms[0].blocks.unit,
        **scores,
        "verdicts": [
            {"model": arm.name, "key": arm.key} | judge(scores["rows"], arm.key, **words).to_dict() for arm in models
        ],
        "noise": noise,
        "nuclei": _nuclei(stores, comparison, arms),
        "notes": notes,
        "figures": save_panels({**panels, **noise_panels}, figures, target=target),
    }


def _places(reference: "Store", comparison: "Comparison") -> dict[str, Any]:
    """Return from which plates, and from how many wells and sites, the source cells come."""
    table = reference.obs.iloc[comparison.sources]
    place = ["Metadata_Plate", "Metadata_Well", "Metadata_Site"]
    wells, sites = (len(table.drop_duplicates(place[:depth])) for depth in (2, 3))
    return {"plates": sorted(set(table["Metadata_Plate"])), "n_wells": wells, "n_sites": sites}


def _bias(distances: Mapping[str, Any]) -> list[str]:
    return [
        f"Fréchet distance ({name}): {found['n']} images for {found['features']} features: mostly bias; compare rows of this table only."
        for name, found in distances.items()
        if found["n"] <= found["features"]
    ]


def _noise(
    config: Config, stores: "Mapping[str, Store]", comparison: "Comparison"
) -> "tuple[dict[str, Any], dict[str, Panel]]":
    """Test x_T of every model, and fresh noise of the same shape beside it."""
    import numpy as np

    from cellbridge.arms import blocks_of_rows
    from cellbridge.metrics.gaussianity import battery, radial_spectrum
    from cellbridge.plots.panels import noise_panels

    reference = stores["reference"]
    x_0, masks = reference.images(comparison.sources), reference.masks(comparison.sources)
    noises = {model: stores["translated"].x_T(rows) for model, rows in comparison.outputs.items()}
    kept = {model: x_T for model, x_T in noises.items() if x_T is not None}
    if not kept:
        return {"not_computed": "the translated store holds no x_T"}, {}
    if len(comparison.sources) < 2:
        return {"not_computed": "one cell; two or more are needed"}, {}
    blocks = blocks_of_rows(reference, comparison.sources)
    foreground = None if masks is None else masks > 0

    def tested(x_T: "np.ndarray") -> list[dict[str, Any]]:
        settings = {"resamples": config.resamples, "seed": config.seed}
        tests = battery(x_T, x_0=x_0, foreground=foreground, blocks=blocks, **settings)
        return [test.to_dict() for test in tests]

    fresh = np.random.default_rng([config.seed, 3]).standard_normal(x_0.shape)
    panels = noise_panels(kept, {model: radial_spectrum(x_T) for model, x_T in kept.items()})
    return {"models": {model: tested(x_T) for model, x_T in kept.items()}, "fresh": tested(fresh)}, panels


def _nuclei(stores: "Mapping[str, Store]", comparison: "Comparison", arms: "list[Arm]") -> dict[str, Any]:
    """Describe nuclei of outputs beside those of their sources and, where known, of the counterfactuals."""
    from cellbridge.metrics.content import nucleus_agreement

    names = [channel.casefold() for channel in stores["reference"].info.channels]
    dna = next((names.index(name) for name in ("dna", "dapi", "hoechst", "nucleus") if name in names), None)
    masks = stores["reference"].masks(comparison.sources)
    if dna is None or masks is None:
        return {"not_computed": "no DNA stain or no masks"}
    images = {arm.key: arm.images[:, dna].numpy() for arm in arms if arm.kind != "real"}
    beside = {"source": "copy", "counterfactual": "counterfactual"}
    return {
        key: {
            name: dict(nucleus_agreement(found, images[other], masks == 2))
            for name, other in beside.items()
            if other in images and other != key
        }
        for key, found in images.items()
        if key.startswith("model:") or key == "counterfactual"
    }
