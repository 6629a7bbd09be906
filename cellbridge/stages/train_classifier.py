"""`cellbridge train-classifier`: which condition a real cell was under; its features are also the offline extractor.

With a section `noise` it learns to tell noisy images, to guide sampling.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from cellbridge import processes
from cellbridge.conditions import resolve
from cellbridge.config import NoiseConfig, TrainingConfig
from cellbridge.data.store import StoreInfo, describe
from cellbridge.errors import ConditionError, ModelError, StoreError
from cellbridge.outputs import require_directory
from cellbridge.runs import RunDir, begin, fingerprint, publish_model, write_json
from cellbridge.settings import Section, binding, dump

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cellbridge.data.dataset import BatchSource
    from cellbridge.data.store import Store
    from cellbridge.networks.classifier import Classifier
    from cellbridge.networks.noisy_classifier import NoisyClassifier
    from cellbridge.training.loop import Batches, LossOutput

_NOT_BINDING = {"store", "training", "held_out", "resume", "accept_changes", "device", "init_from"}


class Config(Section):
    """Settings of `train-classifier`."""

    store: Path
    conditions: tuple[str, ...] | None = None
    """Which to tell apart, beside the control; None takes all that the store holds."""
    plates: tuple[str, ...] | None = None
    """Train on these plates only; None takes every plate of the split."""
    split: str | None = "train"
    held_out: str | None = "test"
    """The split whose real cells it is judged on afterwards; None judges nothing."""
    widths: tuple[PositiveInt, ...] = (16, 32, 64, 64)
    noise: NoiseConfig | None = None
    """Train on noisy images, at all times of the schedule of the base that is to be guided (`solver.classifier`): kind, steps,
    beta_start, beta_end, zero_terminal_snr, or {} for a base of the default one. None trains on clean images."""
    balance: Literal["sampling", "weights", "none"] = "sampling"
    """How rare conditions are made up for: cells drawn more often, or weighted in the loss, by effective number of samples."""
    beta: float = Field(default=0.9999, ge=0.0, le=1.0)
    """Of the effective number (1 - beta^n) / (1 - beta); 1 makes all conditions alike, 0 changes nothing."""
    augment: bool = True
    gain_jitter: float = Field(default=0.1, ge=0.0)
    """Standard deviation of the logarithm of a random gain per image and channel (on [0, 2] above the darkest value)."""
    offset_jitter: float = Field(default=0.05, ge=0.0)
    """Standard deviation of a random offset per image and channel."""
    training: TrainingConfig = TrainingConfig(
        steps=800, batch_size=64, learning_rate=2e-3, weight_decay=0.01, ema_decay=0.99, checkpoint_every=400
    )
    resume: str = "auto"
    accept_changes: bool = False
    """Continue a checkpoint that was made with other data or other settings, with a warning for each difference."""
    init_from: Path | None = None
    """A classifier's run or model directory whose weights it starts from."""
    device: str = "auto"


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Train the classifier, publish it under `out/model`, and judge it on real cells that were held out.

    Of several processes all train, and the main one publishes and judges.

    Raises
    ------
    ConditionError, StoreError : a condition, plate or split that the store does not hold.
    LeakError : a well is on both sides.
    """
    require_directory(out)
    config = config.model_copy(update={"training": processes.shared(config.training)})
    info = describe(config.store)
    names = _conditions(config, info)

    from cellbridge import assembly
    from cellbridge.data import splits
    from cellbridge.data.store import open_store
    from cellbridge.networks.classifier import extractor_name
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    store = open_store(config.store)
    rows = _rows(store, config, names, split=config.split, plates=config.plates)
    held_out = None if config.held_out is None else _rows(store, config, names, split=config.held_out, plates=None)
    if held_out is not None:
        splits.check_disjoint(store.obs.iloc[rows], store.obs.iloc[held_out])
    run_dir = RunDir(out)
    classifier = _built(config, channels=len(info.channels), conditions=len(names)).to(device)
    inputs = {"store": config.store, **assembly.starting_weights(config.init_from, "classifier")}
    effective = _train(
        classifier, store, rows, config=config, names=names, run_dir=run_dir, inputs=inputs, device=device
    )
    if not processes.is_main():
        return {}
    plates = sorted({*store.plates[rows], *assembly.inherited_plates(config.init_from)})
    _publish(classifier, run_dir, info=info, names=names, plates=plates, noise=config.noise)
    metrics: dict[str, Any] = {"extractor": extractor_name(run_dir.model), "conditions": names, "n_train": len(rows)}
    if held_out is not None:
        metrics["held_out"] = _judge(classifier, store, held_out, names=names, config=config)
    write_json(run_dir.metrics, metrics)
    summary = _summary(run_dir, metrics, n=len(rows))
    return summary | {"effective sample size": effective, "sha256": fingerprint(out)}


def _conditions(config: Config, info: StoreInfo) -> list[str]:
    """Return the control and the conditions to tell from it, by name."""
    control = resolve(info.control, info.conditions)
    wanted = info.conditions
    if config.conditions is not None:
        wanted = tuple(resolve(text, info.conditions, aliases=info.aliases) for text in config.conditions)
    names = list(dict.fromkeys([control.name, *(condition.name for condition in wanted)]))
    if len(names) < 2:
        raise ConditionError(
            f"{config.store}: holds {names} only; a classifier needs the control and another condition."
        )
    return names


def _rows(
    store: "Store", config: Config, names: list[str], *, split: str | None, plates: Sequence[str] | None
) -> "np.ndarray":
    rows = store.select(split=split, conditions=names, plates=plates)
    absent = [name for name in names if name not in set(store.condition_names[rows])]
    if absent:
        raise StoreError(
            f'{config.store}: no cell of "{absent[0]}" in split {split!r} on {list(plates) if plates else "any plate"}. '
            "Choose other conditions, plates or splits."
        )
    return rows


def _built(config: Config, *, channels: int, conditions: int) -> "Classifier | NoisyClassifier":
    """Return the network with fresh weights, or with those that it is to start from."""
    from cellbridge.assembly import model_directory
    from cellbridge.networks import classifier as clean
    from cellbridge.networks.noisy_classifier import build_noisy_classifier

    sizes: dict[str, Any] = {"channels": channels, "conditions": conditions, "widths": config.widths}
    seed = config.training.seed
    network: Classifier | NoisyClassifier
    if config.noise is None:
        network = clean.build_classifier(**sizes, seed=seed)
    else:
        network = build_noisy_classifier(**sizes, steps=config.noise.steps, seed=seed)
    if config.init_from is not None:
        directory = model_directory(config.init_from, "classifier")
        if ("noise" in clean.read_classifier_card(directory)) != (config.noise is not None):
            raise ModelError(
                f"{directory}: one of the two classifiers is of noisy images, and the other is not. Start from one of the same kind."
            )
        given = clean.built_with_weights(type(network), directory)
        clean.load_strictly(network, given.state_dict(), where=directory)
    return network


def _train(
    classifier: "Classifier | NoisyClassifier",
    store: "Store",
    rows: "np.ndarray",
    *,
    config: Config,
    names: list[str],
    run_dir: RunDir,
    inputs: dict[str, Path],
    device: "torch.device",
) -> float:
    """Fit the classifier, leave the averaged weights in it, and return the effective sample size of its balanced cells."""
    import torch

    from cellbridge.data import balance
    from cellbridge.data.dataset import BatchSource, CellData
    from cellbridge.training import ema
    from cellbridge.training.checkpoint import as_resume
    from cellbridge.training.events import show
    from cellbridge.training.loop import fit

    index = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([index[name] for name in store.condition_names[rows]])
    weights = balance.sample_weights(labels, beta=0.0 if config.balance == "none" else config.beta)
    effective = round(balance.effective_sample_size(weights), 1)
    source = BatchSource(
        CellData.load(store, rows, labels=labels, device=device),
        batch_size=config.training.batch_size,
        accumulation=config.training.accumulation,
        seed=config.training.seed,
        augment=config.augment,
        sampling=weights if config.balance == "sampling" else None,
        weights=weights if config.balance == "weights" else None,
    )
    batches, loss = _noised(source, config) if config.noise else (_jittered(source, config), _cross_entropy)
    unused = set() if config.noise else {"noise"}  # which a checkpoint may thus be older than
    events = fit(
        classifier,
        loss,
        batches,
        config=config.training,
        run=run_dir,
        identity={name: fingerprint(path) for name, path in inputs.items()}
        | binding(config, exclude=_NOT_BINDING | unused),
        device=device,
        resume=as_resume(config.resume),
        accept_changes=config.accept_changes,
    )
    finished = show(
        events,
        run=run_dir,
        description="train-classifier",
        total=config.training.steps,
        images_per_step=config.training.batch_size,
        on_start=lambda: begin(run_dir, config=dump(config), seed=config.training.seed, inputs=inputs),
        facts={"cells": len(rows), "effective_sample_size": effective},
        trackers=config.training.trackers,
        settings=config.model_dump(mode="json"),
    )
    ema.load(classifier, finished.ema)
    return effective


def _cross_entropy(network: "torch.nn.Module", batch: Any) -> "LossOutput":
    """Weighted mean over the batch of -log p(condition | image)."""
    import torch
    from torch.nn import functional

    from cellbridge.training.loop import LossOutput

    logits = network(batch.images)
    losses = functional.cross_entropy(logits.float(), batch.labels, reduction="none")
    hits = logits.argmax(dim=1) == batch.labels
    count = torch.ones_like(losses).sum()
    return LossOutput((losses * batch.weights).mean(), {"accuracy": (hits.sum(), count)})


def _jittered(source: "BatchSource", config: Config) -> "Batches":
    """Vary gain and offset of each channel, as plates do: y = (x + 1) exp(a) + b - 1, a and b normal, by (seed, step, position in the step)."""
    if not config.augment:
        return source
    from dataclasses import replace

    import torch

    from cellbridge.runtime import generator

    def batches(step: int, micro: int) -> Any:
        batch = source(step, micro)
        images = batch.images
        size, channels = images.shape[:2]
        # The 0 stood for the micro-batch once; so trainings that have one keep their numbers.
        draw = generator(images.device, "intensity jitter", config.training.seed, step, 0)
        normal = torch.randn((2, source.batch_size, channels, 1, 1), generator=draw, device=images.device)
        normal = normal[:, micro * size : (micro + 1) * size]
        gain, offset = (config.gain_jitter * normal[0]).exp(), config.offset_jitter * normal[1]
        return replace(batch, images=(images + 1) * gain + offset - 1)

    return batches


def _noised(source: "BatchSource", config: Config) -> "tuple[Batches, Callable[[torch.nn.Module, Any], LossOutput]]":
    """Return the batches under noise, which follows (seed, step) as their order does, and the loss on them."""
    from cellbridge.assembly import build_schedule
    from cellbridge.diffusion.fitting import classifying_loss, noised_batches

    assert config.noise is not None
    schedule = build_schedule(config.noise).to(source.data.device)
    batches = noised_batches(
        _jittered(source, config),
        steps=schedule.steps,
        seed=config.training.seed,
        condition_dropout=0.0,
        device=source.data.device,
        accumulation=source.accumulation,
    )
    return batches, classifying_loss(schedule)


def _publish(
    classifier: "Classifier | NoisyClassifier",
    run_dir: RunDir,
    *,
    info: StoreInfo,
    names: list[str],
    plates: list[str],
    noise: NoiseConfig | None,
) -> None:
    from cellbridge.networks.classifier import save_classifier

    card = {
        "kind": "classifier",
        "channels": list(info.channels),
        "size_px": info.size_px,
        "conditions": names,
        "plates": plates,
        "store_sha256": fingerprint(info.path),
        "network": classifier.settings,
        **({} if noise is None else {"noise": noise.model_dump(mode="json")}),
    }
    with publish_model(run_dir, manifest={"kind": "classifier"}) as directory:
        save_classifier(classifier, directory, card=card)


def _judge(
    classifier: "Classifier | NoisyClassifier", store: "Store", rows: "np.ndarray", *, names: list[str], config: Config
) -> dict[str, Any]:
    from cellbridge.assembly import build_schedule
    from cellbridge.held_out import judged, judged_under_noise
    from cellbridge.networks.noisy_classifier import NoisyClassifier

    seed = config.training.seed
    if not isinstance(classifier, NoisyClassifier):
        return judged(classifier, store, rows, names=names, seed=seed)
    assert config.noise is not None
    schedule = build_schedule(config.noise)
    return judged_under_noise(classifier, store, rows, names=names, seed=seed, schedule=schedule)


def _summary(run_dir: RunDir, metrics: dict[str, Any], *, n: int) -> dict[str, Any]:
    summary: dict[str, Any] = {"model": str(run_dir.model), "extractor": metrics["extractor"], "cells": n}
    held_out = metrics.get("held_out")
    if held_out is not None:
        summary["held-out cells"] = held_out["n"]
        if "times" in held_out:
            by_time = {f"{one['t']:g}": round(one["balanced_accuracy"]["value"], 4) for one in held_out["times"]}
            return summary | {"balanced accuracy by time": by_time}
        summary["balanced accuracy"] = round(held_out["balanced_accuracy"]["value"], 4)
        aucs = {
            name: round(entry["auc"]["value"], 4) for name, entry in held_out["per_condition"].items() if "auc" in entry
        }
        summary["AUC against the control"] = aucs
    return summary
