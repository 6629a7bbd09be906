"""`cellbridge translate`: what these very cells would look like under a condition, as a store of cells."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from cellbridge import processes
from cellbridge.conditions import Condition, resolve
from cellbridge.config import SolverConfig
from cellbridge.data.store import describe
from cellbridge.errors import ConditionError, StoreError, did_you_mean
from cellbridge.outputs import require_apart, require_directory
from cellbridge.progress import bar
from cellbridge.runs import code_version, fingerprint, is_taken
from cellbridge.settings import Section, Seed

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from cellbridge.assembly import Model, ModelCard
    from cellbridge.data.regrouping import Regrouping
    from cellbridge.data.store import Store
    from cellbridge.translators.translator import Translator
    from cellbridge.typing import CellBatch


_PLACE = tuple(f"Metadata_{name}" for name in ("Cell", "Source", "Batch", "Plate", "Well", "Site", "Split"))
_MASKS_AT_ONCE = 2048


class Config(Section):
    """Settings of `translate`."""

    store: Path
    base: Path
    adapters: tuple[Path, ...] = ()
    source: str | None = None
    """The condition of the cells to translate; None is the control."""
    targets: tuple[str, ...] | None = None
    """The conditions to translate to; None is every one but the source that an adapter or the base models."""
    split: str | None = "test"
    plates: tuple[str, ...] | None = None
    n: PositiveInt | None = None
    """How many cells, drawn evenly over plates by the seed; None takes all."""
    method: Literal["ddib"] = "ddib"
    solver: SolverConfig = SolverConfig()
    x_T: Literal["inverted", "fresh"] = "inverted"
    seed: Seed = 0
    batch_size: PositiveInt = 64
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: str = "auto"
    overwrite: bool = False
    """Replace `out`, if it is a store that `translate` made."""


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Translate the cells and write a store whose rows are (target condition, source cell).

    Each image has a seed of its own, so the result does not depend on the batch size, nor on how many processes share the batches.
    What is translated waits on disk beside `out`, so that memory holds a few batches. The store keeps the noise `x_T` beside the
    images, for `evaluate` to test.

    Raises
    ------
    ConditionError : a source or target that the store or the models do not know.
    ModelError : an adapter that belongs to another base, or models that do not fit the store.
    StoreError, RunError : `out` is taken, or is not apart from the inputs.
    """
    info = describe(config.store)
    source = resolve(config.source or info.control, info.conditions, aliases=info.aliases)
    wanted = [resolve(t, info.conditions, aliases=info.aliases) for t in config.targets or ()]
    _check_out(config, out)

    from cellbridge import assembly
    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    base = assembly.load_base(config.base, device=device)
    assembly.check_fit(base.card, info)
    models = assembly.load_models(base, config.adapters, asked=wanted)
    targets, guides = _choose(wanted, tuple(models), source=source), assembly.load_guides(config.solver, base)
    translator = assembly.build_translator(
        config.method,
        models,
        source=source,
        solver=config.solver,
        x_T=config.x_T,
        targets=targets,
        guides=guides,
    )
    store = open_store(config.store)
    rows = _rows(config, store, source)
    results = _translated(config, store, translator, targets, rows, device=device)
    if not processes.is_main():
        for _ in results:
            pass
        return {}
    obs = _obs(store, rows, source=source, targets=targets, model=translator.name, seed=config.seed)
    attributes = {
        "aliases": dict(info.aliases),
        "made_by": code_version(),
        "config": config.model_dump(mode="json"),
        "inputs": {
            "store": fingerprint(config.store),
            "base": base.sha256,
            "adapters": [fingerprint(a) for a in config.adapters],
            **{name: fingerprint(path) for name, path in config.solver.guides.items()},
        },
        "trained_on": _trained_on(base.card, models, source=source, targets=targets) | guides.plates,
    }
    with _regrouped(results, store, targets=len(targets), out=out) as images:
        attributes["share_clipped"] = images.share_clipped
        _write(out, store, rows, obs=obs, images=images, attributes=attributes, overwrite=config.overwrite)
    return {
        "store": str(out),
        "cells": len(rows),
        "targets": [t.name for t in targets],
        "share clipped": round(images.share_clipped, 6),
    }


def _check_out(config: Config, out: Path) -> None:
    require_apart(out, (config.store, config.base, *config.adapters, *config.solver.guides.values()))
    require_directory(out.parent)
    if not is_taken(out):
        return
    if not config.overwrite:
        raise StoreError(f"{out}: exists already. Remove it, choose another name, or set overwrite=true.")
    try:
        replaceable = "share_clipped" in describe(out).attributes
    except StoreError:
        replaceable = False
    if not replaceable:
        raise StoreError(
            f"{out}: is not a store that translate made, and overwrite=true replaces nothing else. Remove it, or choose another name."
        )


def _choose(wanted: list[Condition], offered: tuple[Condition, ...], *, source: Condition) -> list[Condition]:
    targets = list(dict.fromkeys(wanted)) or [condition for condition in offered if condition != source]
    for target in targets:
        if target not in offered:
            raise ConditionError(
                f'no model of "{target.name}" was given: run `cellbridge finetune --condition "{target.name}"` and pass its '
                f"run as --adapter.{did_you_mean(target.name, [condition.name for condition in offered])}"
            )
    if not targets:
        raise ConditionError("no target: give the run of `cellbridge finetune` as --adapter, or name a --target.")
    return targets


def _rows(config: Config, store: "Store", source: Condition) -> "np.ndarray":
    """Return the rows of the cells to translate."""
    from cellbridge.data.balance import draw_evenly

    rows = store.select(split=config.split, conditions=[source.name], plates=config.plates)
    if len(rows) == 0:
        raise StoreError(f"{config.store}: no cell of {source.name} in split {config.split!r} to translate.")
    return rows if config.n is None else draw_evenly(rows, store.plates[rows], n=config.n, seed=config.seed)


def _trained_on(
    base: "ModelCard", models: "Mapping[Condition, Model]", *, source: Condition, targets: list[Condition]
) -> dict[str, list[str]]:
    """Return the plates that each model behind the translation has seen, for `evaluate` to hold against those it judges on."""
    used = {c.name: models[c].card for c in (source, *targets) if c in targets or models[c].card is not base}
    return {"base": list(base.plates), **{name: list(card.plates) for name, card in used.items()}}


def _translated(
    config: Config,
    store: "Store",
    translator: "Translator",
    targets: list[Condition],
    rows: "np.ndarray",
    *,
    device: "torch.device",
) -> "Iterator[tuple[torch.Tensor, ...]]":
    """Yield, on the main process, for each batch of cells: counts (target, cell, channel, y, x), how many were clipped, and x_T."""
    import torch

    from cellbridge.runtime import autocast, pick_precision
    from cellbridge.translators.ddib import Ddib

    dtype = pick_precision(config.precision, device)
    kept = torch.uint8 if store.info.full_scale <= 255 else torch.uint16

    def work(part: "np.ndarray") -> tuple[torch.Tensor, ...]:
        with torch.inference_mode(), autocast(device, dtype):
            batch = _batch(store, part, seed=config.seed, device=device)
            noise = (translator.encode(batch).float().cpu(),) if isinstance(translator, Ddib) else ()
            images = [translator.translate(batch, target=target).images.float().cpu() for target in targets]
        counts, share = store.intensity.to_counts(torch.cat(images), list(batch.plates) * len(targets))
        clipped = torch.tensor(round(share * counts.numel()))
        return counts.to(kept).view(len(targets), *images[0].shape), clipped, *noise

    parts = [rows[start : start + config.batch_size] for start in range(0, len(rows), config.batch_size)]
    with bar("translate", total=len(rows), unit="cells") as shown:
        for result in processes.in_order(parts, work):
            yield result
            shown.advance(result[0].shape[1])


@contextmanager
def _regrouped(
    results: "Iterator[tuple[torch.Tensor, ...]]", store: "Store", *, targets: int, out: Path
) -> "Iterator[Regrouping]":
    """Run a translation to its end, keeping its results beside `out`, one target after the other, for the block."""
    from cellbridge.data.regrouping import Regrouping

    info = store.info
    shape = (len(info.channels), info.size_px, info.size_px)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder,
        Regrouping(Path(folder), targets=targets, image_shape=shape, full_scale=info.full_scale) as regrouping,
    ):
        for counts, clipped, *noise in results:
            regrouping.add(counts, *noise, clipped=int(clipped))
        yield regrouping


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

    cells = store.obs.iloc[rows].rename(columns=_of_source)
    tables = []
    for target in targets:
        table = cells.copy()
        table["Metadata_SourceCell"] = table["Metadata_Cell"]
        table["Metadata_Cell"] = [f"{cell}>{target.name}" for cell in table["Metadata_SourceCell"]]
        table["Metadata_Compound"] = target.compound
        table["Metadata_Concentration"] = target.dose
        table["Metadata_pert_type"] = "negcon" if target.name == store.info.control else "trt"
        table["Metadata_Origin"] = "generated"
        table["Metadata_SourceCondition"] = source.name
        table["Metadata_TargetCondition"] = target.name
        table["Metadata_Model"] = model
        table["Metadata_Seed"] = [str(_cell_seed(seed, cell)) for cell in table["Metadata_SourceCell"]]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _write(
    out: Path,
    store: "Store",
    rows: "np.ndarray",
    *,
    obs: "pd.DataFrame",
    images: "Regrouping",
    attributes: dict[str, Any],
    overwrite: bool,
) -> None:
    """Write images whose scale, masks and maps are those of the source cells, which repeat for every target."""
    from cellbridge.data.store import write_store

    info = store.info
    write_store(
        out,
        obs=obs,
        counts=images.counts(),
        channels=info.channels,
        full_scale=info.full_scale,
        size_px=info.size_px,
        pixel_um=info.pixel_um,
        control=info.control,
        intensity=store.intensity,
        masks=_masks(store, rows, repeats=len(obs) // len(rows)),
        x_T=images.x_T(),
        attributes=attributes,
        overwrite=overwrite,
    )


def _masks(store: "Store", rows: "np.ndarray", *, repeats: int) -> "Iterator[np.ndarray] | None":
    """Yield the masks of the source cells, some at a time, once for every target; None where the store has none."""
    if store.masks(rows[:0]) is None:
        return None
    parts = [rows[start : start + _MASKS_AT_ONCE] for start in range(0, len(rows), _MASKS_AT_ONCE)] * repeats
    return (masks for part in parts if (masks := store.masks(part)) is not None)


def _of_source(column: str) -> str:
    """Name a column of the source cell: where it lies holds for its image too, anything else is true of the source alone."""
    if column in _PLACE or column.startswith("Location_"):
        return column
    prefix = "Metadata_" if column.startswith("Metadata_") else ""
    return f"{prefix}Source_{column.removeprefix('Metadata_')}"
