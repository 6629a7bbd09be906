"""`cellbridge finetune --condition X`: one LoRA adapter over the frozen base, with a class-balanced loss."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cellbridge.conditions import resolve
from cellbridge.config import AdapterConfig, Section, SolverConfig, TrainingConfig, binding, dump
from cellbridge.data.store import describe
from cellbridge.errors import ConditionError, StoreError
from cellbridge.runs import RunDir, begin, fingerprint

if TYPE_CHECKING:
    import numpy as np

    from cellbridge.data.store import Store


_NOT_BINDING = {"store", "base", "training", "sampler", "resume", "device"}


class Config(Section):
    """Settings of `finetune`."""

    store: Path
    base: Path
    condition: str
    plates: tuple[str, ...] | None = None
    split: str | None = "train"
    adapter: AdapterConfig = AdapterConfig()
    training: TrainingConfig = TrainingConfig(steps=400)
    sampler: SolverConfig = SolverConfig(steps=13)
    replay: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Share of control cells among the training cells: they keep the control where it is, and give the classes a meaning."""
    beta: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Effective number of samples (Cui et al. 2019): 0 weighs all cells alike, near 1 all classes alike."""
    condition_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    augment: bool = True
    resume: str = "auto"
    init_from: Path | None = None
    device: str = "auto"


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Train the adapter and publish it as a peft directory under `out/model`, bound to its base by hash.

    The loss weighs classes = (condition, plate), control cells included, by the effective number of samples; with the target
    condition alone there would be one class and the weights would do nothing.

    Raises
    ------
    ConditionError : the store does not hold the condition, or it is the control.
    ModelError : base and store differ in channels or size.
    """
    info = describe(config.store)
    condition = resolve(config.condition, info.conditions, aliases=info.aliases)
    if condition.name == info.control:
        raise ConditionError(
            f'"{condition.name}" is the control, which the base already models. Name a treated condition.'
        )

    from cellbridge import assembly
    from cellbridge.data.balance import classes_of, sample_weights
    from cellbridge.data.dataset import BatchSource, CellData
    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    base = assembly.load_base(config.base, device=device)
    assembly.check_fit(base.card, info)
    store = open_store(config.store)
    rows = _rows(config, store, condition.name)
    run_dir = RunDir(out)
    inputs = {"store": config.store, "base": config.base}
    inputs_sha256 = {name: fingerprint(path) for name, path in inputs.items()}
    conditions = (*base.card.conditions[:-1], condition.name)
    names = store.condition_names[rows]
    source = BatchSource(
        CellData.load(store, rows, labels=assembly.labels_of(names, conditions), device=device),
        batch_size=config.training.batch_size,
        accumulation=config.training.accumulation,
        seed=config.training.seed,
        augment=config.augment,
        weights=sample_weights(classes_of(names, store.plates[rows])[0], beta=config.beta),
    )
    model = assembly.attach_adapter(base, config.adapter, seed=config.training.seed, init_from=config.init_from)
    finished = assembly.fit_denoiser(
        model,
        source,
        schedule=base.card.schedule,
        training=config.training,
        sampler=config.sampler,
        condition_dropout=config.condition_dropout,
        conditions=conditions,
        channels=info.channels,
        device=device,
        run=run_dir,
        resume=config.resume,
        on_start=lambda: begin(run_dir, config=dump(config), seed=config.training.seed, inputs=inputs),
        identity=inputs_sha256 | binding(config, exclude=_NOT_BINDING),
        shown=[info.control, condition.name],
        description=f"finetune {condition.name}",
    )
    card = base.card.model_copy(
        update={
            "kind": "adapter",
            "conditions": conditions,
            "plates": tuple(sorted(set(store.obs["Metadata_Plate"].iloc[rows]))),
            "store_sha256": inputs_sha256["store"],
            "adapter": config.adapter,
            "base_sha256": base.sha256,
        }
    )
    assembly.publish_adapter(run_dir, model, ema=finished.ema, card=card)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "model": str(run_dir.model),
        "condition": condition.name,
        "cells": int((names == condition.name).sum()),
        "replayed control cells": int((names != condition.name).sum()),
        "trainable parameters": trainable,
        "sha256": fingerprint(out),
    }


def _rows(config: Config, store: "Store", condition: str) -> "np.ndarray":
    """Return the rows of the condition, and of the control cells to replay: an even share of every plate."""
    import numpy as np

    treated = store.select(split=config.split, conditions=[condition], plates=config.plates)
    if len(treated) == 0:
        raise StoreError(
            f'{config.store}: no cell of "{condition}" in split {config.split!r} on these plates to train on.'
        )
    control = store.select(split=config.split, conditions=[store.info.control], plates=config.plates)
    wanted = min(round(len(treated) * config.replay / (1 - config.replay)), len(control))
    shuffled = np.random.default_rng(config.training.seed).permutation(control)
    rank = np.empty(len(shuffled), dtype=np.int64)
    for plate in set(store.plates[shuffled]):
        of_plate = store.plates[shuffled] == plate
        rank[of_plate] = np.arange(of_plate.sum())
    replayed = shuffled[np.argsort(rank, kind="stable")[:wanted]]
    return np.sort(np.concatenate([treated, replayed]))
