"""`cellbridge translate`: what these very cells would look like under a condition, as a store of cells."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from cellbridge.conditions import Condition, resolve
from cellbridge.config import Section, SolverConfig
from cellbridge.data.store import describe
from cellbridge.errors import ConditionError, StoreError, did_you_mean
from cellbridge.progress import bar
from cellbridge.runs import fingerprint, is_taken

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from cellbridge.data.store import Store
    from cellbridge.translators.translator import Translator
    from cellbridge.typing import CellBatch


class Config(Section):
    """Settings of `translate`."""

    store: Path
    base: Path
    adapters: tuple[Path, ...] = ()
    source: str | None = None
    """The condition of the cells to translate; None is the control."""
    targets: tuple[str, ...] | None = None
    """The conditions to translate to; None is every adapter's."""
    split: str | None = "test"
    plates: tuple[str, ...] | None = None
    n: PositiveInt | None = None
    """How many cells, drawn evenly over plates by the seed; None takes all."""
    method: Literal["ddib"] = "ddib"
    solver: SolverConfig = SolverConfig()
    x_T: Literal["inverted", "fresh"] = "inverted"
    seed: int = 0
    batch_size: PositiveInt = 64
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: str = "auto"
    overwrite: bool = False


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Translate the cells and write a store whose rows are (target condition, source cell).

    Each image has a seed of its own, so the result does not depend on the batch size; the store keeps the noise `x_T` beside the
    images, for `evaluate` to test.

    Raises
    ------
    ConditionError : a source or target that the store or the models do not know.
    ModelError : an adapter that belongs to another base, or models that do not fit the store.
    """
    info = describe(config.store)
    source = resolve(config.source or info.control, info.conditions, aliases=info.aliases)
    wanted = [resolve(t, info.conditions, aliases=info.aliases) for t in config.targets or ()]
    if is_taken(out) and not config.overwrite:
        raise StoreError(f"{out}: exists already. Remove it, choose another name, or set overwrite=true.")

    from cellbridge import assembly
    from cellbridge.data.store import open_store, write_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    base = assembly.load_base(config.base, device=device)
    assembly.check_fit(base.card, info)
    translator, offered = assembly.build_translator(
        config.method, base=base, source=source.name, adapters=config.adapters, solver=config.solver, x_T=config.x_T
    )
    targets = _choose(wanted, offered, source=source)
    store = open_store(config.store)
    rows = store.select(split=config.split, conditions=[source.name], plates=config.plates)
    if len(rows) == 0:
        raise StoreError(f"{config.store}: no cell of {source.name} in split {config.split!r} to translate.")
    rows = _draw(rows, n=config.n, seed=config.seed)
    images, x_T = _translate(config, store, translator, targets, rows, device=device)
    counts, clipped = store.intensity.to_counts(images, list(store.plates[rows]) * len(targets))
    masks = store.masks(rows)
    write_store(
        out,
        obs=_obs(store, rows, source=source, targets=targets, model=translator.name, seed=config.seed),
        counts=counts.numpy().astype("uint8" if info.full_scale < 256 else "uint16"),
        channels=info.channels,
        full_scale=info.full_scale,
        size_px=info.size_px,
        pixel_um=info.pixel_um,
        control=info.control,
        intensity=store.intensity,
        masks=None if masks is None else masks[list(range(len(rows))) * len(targets)],
        x_T=None if x_T is None else x_T.numpy(),
        attributes={
            "config": config.model_dump(mode="json"),
            "inputs": {
                "store": fingerprint(config.store),
                "base": base.sha256,
                "adapters": [fingerprint(a) for a in config.adapters],
            },
            "share_clipped": clipped,
        },
        overwrite=True,
    )
    return {
        "store": str(out),
        "cells": len(rows),
        "targets": [t.name for t in targets],
        "share clipped": round(clipped, 6),
    }


def _choose(wanted: list[Condition], offered: tuple[Condition, ...], *, source: Condition) -> list[Condition]:
    targets = wanted or [condition for condition in offered if condition != source]
    for target in targets:
        if target not in offered:
            raise ConditionError(
                f'no model of "{target.name}" was given: run `cellbridge finetune --condition "{target.name}"` and pass its '
                f"run as --adapter.{did_you_mean(target.name, [condition.name for condition in offered])}"
            )
    if not targets:
        raise ConditionError("no target: give the run of `cellbridge finetune` as --adapter, or name a --target.")
    return targets


def _draw(rows: "np.ndarray", *, n: int | None, seed: int) -> "np.ndarray":
    import numpy as np

    if n is None or n >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size=n, replace=False))


def _translate(
    config: Config,
    store: "Store",
    translator: "Translator",
    targets: list[Condition],
    rows: "np.ndarray",
    *,
    device: "torch.device",
) -> "tuple[torch.Tensor, torch.Tensor | None]":
    import torch

    from cellbridge.runtime import autocast, pick_precision
    from cellbridge.translators.ddib import Ddib

    dtype = pick_precision(config.precision, device)
    images: list[list[torch.Tensor]] = [[] for _ in targets]
    noises: list[torch.Tensor] = []
    with torch.inference_mode(), autocast(device, dtype), bar("translate", total=len(rows), unit="cells") as shown:
        for start in range(0, len(rows), config.batch_size):
            batch = _batch(store, rows[start : start + config.batch_size], seed=config.seed, device=device)
            if isinstance(translator, Ddib):
                noises.append(translator.encode(batch).float().cpu())
            for i, target in enumerate(targets):
                images[i].append(translator.translate(batch, target=target).images.float().cpu())
            shown.advance(len(batch.cell_ids))
    x_T = torch.cat(noises).repeat(len(targets), 1, 1, 1) if noises else None
    return torch.cat([torch.cat(some) for some in images]), x_T


def _batch(store: "Store", rows: "np.ndarray", *, seed: int, device: "torch.device") -> "CellBatch":
    import torch

    from cellbridge.typing import CellBatch

    ids = tuple(store.obs["Metadata_Cell"].iloc[rows])
    return CellBatch(
        images=torch.from_numpy(store.images(rows)).to(device),
        cell_ids=ids,
        plates=tuple(store.plates[rows]),
        conditions=tuple(store.condition_names[rows]),
        seeds=torch.tensor([_cell_seed(seed, cell) for cell in ids], device=device),
    )


def _cell_seed(seed: int, cell: str) -> int:
    from cellbridge.runtime import derive_seed

    return derive_seed("translate", seed, cell)


def _obs(
    store: "Store", rows: "np.ndarray", *, source: Condition, targets: list[Condition], model: str, seed: int
) -> "pd.DataFrame":
    import pandas as pd

    tables = []
    for target in targets:
        table = store.obs.iloc[rows].copy()
        table["Metadata_SourceCell"] = table["Metadata_Cell"]
        table["Metadata_Cell"] = [f"{cell}>{target.name}" for cell in table["Metadata_SourceCell"]]
        table["Metadata_Compound"] = target.compound
        table["Metadata_Concentration"] = "" if target.dose_um is None else f"{target.dose_um:g}"
        table["Metadata_pert_type"] = "negcon" if target.name == store.info.control else "trt"
        table["Metadata_Origin"] = "generated"
        table["Metadata_SourceCondition"] = source.name
        table["Metadata_TargetCondition"] = target.name
        table["Metadata_Model"] = model
        table["Metadata_Seed"] = [str(_cell_seed(seed, cell)) for cell in table["Metadata_SourceCell"]]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
