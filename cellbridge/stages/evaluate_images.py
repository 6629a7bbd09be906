"""`cellbridge evaluate --generated DIR --real DIR`: judge images that cellbridge did not make, out of folders, array files or stores.

Inputs are only read; results of an earlier evaluation are removed before new ones are made, and `metrics.json` is written last.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from cellbridge.errors import ConfigError, ModelError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.runs import RunDir, begin, is_taken, write_json, write_text
from cellbridge.settings import Section, Seed, dump

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cellbridge.evaluation.drawing import Sets
    from cellbridge.evaluation.folders import Judged
    from cellbridge.metrics.features import Extractor

_FORMAT = 3
_MORPHOLOGY = "morphology"


class Images(Section):
    """How the images are to be read, where the files alone do not say it; one form for all sets."""

    channels: tuple[str, ...] | None = None
    """Stain names, in the order of the channels or as they stand in the file names; a store says its own."""
    pattern: str = "{image}"
    """File names without their suffix: {image} where one file holds all channels, {image}_{channel} where each holds one."""
    axes: Literal["HWC", "CHW"] | None = None
    """Where the channels lie; found where only one axis can be it."""
    full_scale: PositiveInt | None = None
    """The count that is full brightness, such as 4095; None takes the type's largest."""
    value_range: tuple[float, float] | None = None
    """Of floating-point images: what is darkest and what is full brightness."""


class Config(Section):
    """Settings of `evaluate` for images that cellbridge did not make."""

    generated: tuple[Path, ...] = Field(min_length=1)
    """Generated images: a folder (sub-folders are conditions), .npy, .npz, .h5ad, a Zarr group or a store; give one per model."""
    real: Path
    """Real images of the same conditions, which no model was trained on."""
    control: Path | None = None
    """Real control images; by default those of `control_condition` among the real ones."""
    control_condition: str = "DMSO"
    train: Path | None = None
    """The images that the models were trained on, to see whether they are returned; also what conditions are learnt from."""
    source: Path | None = None
    """What was translated: images of the same names as the generated ones."""
    classifier: Path | None = None
    """A run of `train-classifier` for these channels and this size; by default one is learnt from real images."""
    images: Images = Images()
    intensity: Literal["linear", "asinh"] = "linear"
    """asinh spreads what is dim by one map for all sets, fitted to the control or else the real images: for 16-bit microscopy."""
    extractors: tuple[str, ...] = (_MORPHOLOGY,)
    """Features: morphology (needs a DNA stain by name), cp_measure, timm:MODEL@FILE, torchvision:MODEL@FILE …; the first leads."""
    n: PositiveInt | None = None
    """Images per row that distances are computed on, at most."""
    seed: Seed = 0
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap draws of each interval."""
    device: str = "auto"


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Judge every condition of the generated images and write `out/metrics.json`, `cells.parquet`, `table.txt` and `figures`.

    Raises
    ------
    ImageError : a set cannot be read, or sets differ in size, channels or conditions.
    ModelError : nothing gives features of these images, or the classifier is of others.
    RunError : `out` holds something else than an evaluation.
    """
    inputs = _inputs(config)
    _require_free(out, inputs)

    from cellbridge.evaluation.folders import judge_sets
    from cellbridge.metrics.table import text_table
    from cellbridge.tables import write_cells

    sets = _read(config)
    extractors, missing, classifier = _judges(config, sets)
    run_dir = RunDir(out)
    _clear(run_dir)
    sums = {name: found.sha256 for name, found in sets.named().items()}
    others = {"classifier": config.classifier} if config.classifier is not None else {}
    sums |= begin(run_dir, config=dump(config), seed=config.seed, inputs=others)
    judged = judge_sets(
        sets,
        extractors,
        classifier=classifier,
        intensity=config.intensity,
        n=config.n,
        resamples=config.resamples,
        seed=config.seed,
    )
    metrics = _head(config, sets) | {"inputs": sums, "not_computed": missing} | judged.metrics
    for target in metrics["targets"]:
        target["figures"] = _figures(judged, target["target"], sets.real.channels, out / "figures")
    metrics["cells"] = write_cells(judged.cells, out)
    table = text_table(metrics)
    write_text(out / "table.txt", table + "\n")
    write_json(run_dir.metrics, metrics)
    labels = {f"{t['target']} ({v['model']})": v["label"] for t in metrics["targets"] for v in t["verdicts"]}
    return {"table": table, "verdicts": labels, "metrics": str(run_dir.metrics)}


def _inputs(config: Config) -> dict[str, Path]:
    named = {name: getattr(config, name) for name in ("real", "control", "train", "source", "classifier")}
    named |= {f"generated {index}": path for index, path in enumerate(config.generated)}
    return {name: path for name, path in named.items() if path is not None}


def _require_free(out: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse a directory that holds something else than an evaluation of images, and one that lies in an input or around it."""
    import yaml

    from cellbridge.errors import RunError

    require_apart(out, inputs.values())
    require_directory(out)
    if not is_taken(out):
        return
    try:
        written = yaml.safe_load(RunDir(out).config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        written = None
    if not isinstance(written, dict) or not {"generated", "real", "images"} <= set(written):
        raise RunError(f"{out}: holds something else than an evaluation of images. Choose another --out.")


def _clear(run_dir: RunDir) -> None:
    for name in ("metrics.json", "report.html", "table.txt", "cells.parquet"):
        (run_dir.path / name).unlink(missing_ok=True)
    for figure in (run_dir.path / "figures").glob("*.png"):
        figure.unlink()


def _read(config: Config) -> "Sets":
    from cellbridge.data.image_sets import Form, read_image_set
    from cellbridge.evaluation.drawing import Sets

    form = Form(**config.images.model_dump())
    names = [path.resolve().name.removesuffix(path.suffix) for path in config.generated]
    if len(set(names)) < len(names):
        raise ConfigError(f"generated: two sets are called {names[0]}. Rename a folder; its name stands in the table.")
    others = {name: getattr(config, name) for name in ("control", "train", "source")}
    return Sets(
        {name: read_image_set(path, form) for name, path in zip(names, config.generated, strict=True)},
        read_image_set(config.real, form),
        **{name: read_image_set(path, form) for name, path in others.items() if path is not None},
        control_condition=config.control_condition,
    )


Classifier = tuple[list[str], "Callable[[torch.Tensor], np.ndarray]"]


def _judges(config: Config, sets: "Sets") -> "tuple[list[Extractor], dict[str, str], Classifier | None]":
    """Open what looks at the images, and say what cannot be had."""
    from cellbridge.evaluation.judges import named_extractor
    from cellbridge.runtime import pick_device

    device, missing = pick_device(config.device), {}
    extractors, classifier = [], None
    if config.classifier is not None:
        of_classifier, classifier = _classifier(config.classifier, sets, device=str(device))
        extractors.append(of_classifier)
    for wanted in config.extractors:
        try:
            extractors.append(named_extractor(wanted, sets.real.channels, device=device))
        except (ModelError, ImportError) as error:
            missing[wanted] = str(error).removeprefix(f"{wanted}: ")
    if not extractors:
        said = " ".join(f"{name}: {why}" for name, why in missing.items())
        raise ModelError(
            f"nothing gives features of these images ({said.rstrip('.')}). Name the stains (images.channels, DNA among them), or give "
            "--classifier or extractors with a weights file."
        )
    return extractors, missing, classifier


def _classifier(path: Path, sets: "Sets", *, device: str) -> "tuple[Extractor, Classifier]":
    """Open a classifier, after holding its channels and size against the images'."""
    import torch

    from cellbridge.assembly import load_classifier
    from cellbridge.metrics.features import Extractor
    from cellbridge.networks.classifier import extractor_name, logits_of, weights_sha256

    network, card = load_classifier(path, device=torch.device(device))
    shown = sets.real.values.shape[1:]
    if (len(card["channels"]), card["size_px"], card["size_px"]) != shown:
        raise ModelError(
            f"{path}: is for {len(card['channels'])} channels at {card['size_px']} px, the images show {shown[0]} at {shown[1:]} px. "
            "Leave the classifier out, or make the images alike."
        )
    directory = RunDir(path).model
    name, sha256 = extractor_name(directory), weights_sha256(directory)

    def logits(images: "torch.Tensor") -> "np.ndarray":
        return torch.cat([logits_of(network, part) for part in images.split(256)]).numpy()

    return Extractor(name, sha256, lambda images: network.features(images.to(device))), (card["conditions"], logits)


def _head(config: Config, sets: "Sets") -> dict[str, Any]:
    from importlib import metadata

    from cellbridge.metrics.intervals import LEVEL

    packages = ("cellbridge", "torch", "numpy", "scipy", "scikit-learn", "scikit-image")
    return {
        "format": _FORMAT,
        "kind": "evaluation",
        "input_kind": "folders",
        "seed": config.seed,
        "split": "",
        "resamples": config.resamples,
        "level": LEVEL,
        "channels": list(sets.real.channels),
        "control": config.control_condition,
        "inception": None,
        "models": {},
        "versions": {name: metadata.version(name) for name in packages},
    }


def _figures(judged: "Judged", target: str, channels: tuple[str, ...], directory: Path) -> list[dict[str, str]]:
    from cellbridge.figures import save_panels
    from cellbridge.plots.panels import set_panels

    return save_panels(set_panels(judged.shown[target], channels), directory, target=target)
