"""`cellbridge finetune --condition X`: one LoRA adapter over the frozen base, with a class-balanced loss."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cellbridge import processes
from cellbridge.conditions import resolve
from cellbridge.config import AdapterConfig, DenoiserFitConfig, TrainingConfig
from cellbridge.data.store import describe
from cellbridge.errors import ConditionError, StoreError
from cellbridge.outputs import require_directory
from cellbridge.runs import RunDir, fingerprint

if TYPE_CHECKING:
    import numpy as np

    from cellbridge.data.store import Store


class Config(DenoiserFitConfig):
    """Settings of `finetune`."""

    base: Path
    condition: str
    adapter: AdapterConfig = AdapterConfig()
    training: TrainingConfig = TrainingConfig(steps=400)
    replay: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Share of control cells among the training cells: they keep the control where it is, and give the classes a meaning."""
    beta: float = Field(default=0.999, ge=0.0, le=1.0)
    """Effective number of samples (Cui et al. 2019): 0 weighs all cells alike, 1 all classes alike."""
    balance: Literal["weights", "sampling"] = "weights"
    """How rare classes are made up for: cells weighted in the loss, or drawn more often, which repeats them but adds no variance."""


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Train the adapter and publish it (of several processes, the main one) as a peft directory under `out/model`, bound to its base by hash.

    The loss weighs (or training draws) classes = (condition, plate), control cells included, by the effective number of samples; with
    the target condition alone there would be one class and the weights would do nothing. The effective sample size says what the
    weights cost in variance; below half of the cells, prefer `balance: sampling`.

    Raises
    ------
    ConditionError : the store does not hold the condition, or it is the control.
    ModelError : base and store differ in channels or size.
    """
    require_directory(out)
    config = config.model_copy(update={"training": processes.shared(config.training)})
    info = describe(config.store)
    condition = resolve(config.condition, info.conditions, aliases=info.aliases)
    if condition.name == info.control:
        raise ConditionError(
            f'"{condition.name}" is the control, which the base already models. Name a treated condition.'
        )

    from cellbridge import assembly, fitting
    from cellbridge.data.balance import classes_of, effective_sample_size, sample_weights
    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    base = assembly.load_base(config.base, device=device)
    assembly.check_fit(base.card, info)
    store = open_store(config.store)
    rows = _rows(config, store, condition.name)
    names, plates = store.condition_names[rows], store.plates[rows]
    starting = assembly.starting_weights(config.init_from, "adapter")
    card = assembly.adapter_card(
        base,
        condition.name,
        adapter=config.adapter,
        plates=(*plates, *assembly.inherited_plates(config.init_from)),
        store_sha256=fingerprint(config.store),
    )
    weights = sample_weights(classes_of(names, plates)[0], beta=config.beta)
    facts = {"cells": len(rows), "effective_sample_size": round(effective_sample_size(weights), 1)}
    model = assembly.attach_adapter(
        base, config.adapter, condition=condition.name, seed=config.training.seed, init_from=config.init_from
    )
    finished = fitting.fit_denoiser(
        model,
        fitting.batch_source(
            store,
            rows,
            config,
            conditions=card.conditions,
            device=device,
            weights=weights if config.balance == "weights" else None,
            sampling=weights if config.balance == "sampling" else None,
        ),
        card,
        config=config,
        run=RunDir(out),
        inputs={"store": config.store, "base": config.base, **starting},
        shown=[info.control, condition.name],
        description=f"finetune {condition.name}",
        facts=facts,
    )
    if not processes.is_main():
        return {}
    assembly.publish_adapter(RunDir(out), model, ema=finished.ema, card=card)
    return {
        "model": str(RunDir(out).model),
        "condition": condition.name,
        "cells": int((names == condition.name).sum()),
        "replayed control cells": int((names != condition.name).sum()),
        "effective sample size": facts["effective_sample_size"],
        "trainable parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "sha256": fingerprint(out),
    }


def _rows(config: Config, store: "Store", condition: str) -> "np.ndarray":
    """Return the rows of the condition, and of the control cells to replay: an even share of every plate."""
    import numpy as np

    from cellbridge.data.balance import draw_evenly

    treated = store.select(split=config.split, conditions=[condition], plates=config.plates)
    if len(treated) == 0:
        raise StoreError(
            f'{config.store}: no cell of "{condition}" in split {config.split!r} on these plates to train on.'
        )
    control = store.select(split=config.split, conditions=[store.info.control], plates=config.plates)
    wanted = min(round(len(treated) * config.replay / (1 - config.replay)), len(control))
    replayed = draw_evenly(control, store.plates[control], n=wanted, seed=config.training.seed)
    return np.sort(np.concatenate([treated, replayed]))
