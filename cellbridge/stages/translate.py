"""`cellbridge translate`: what these very cells would look like under a condition, as a store of cells."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cellbridge import processes
from cellbridge.conditions import Condition, resolve, resolve_or_read
from cellbridge.config import SolverConfig, XTOrigin, prior_run
from cellbridge.data.store import describe
from cellbridge.errors import ConditionError, StoreError, did_you_mean
from cellbridge.modelled import model_card, modelled_conditions
from cellbridge.outputs import require_apart, require_directory
from cellbridge.progress import bar
from cellbridge.runs import code_version, fingerprint, is_taken
from cellbridge.settings import Section, Seed

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from cellbridge.assembly import Base, Model, ModelCard
    from cellbridge.data.regrouping import Regrouping
    from cellbridge.data.store import Store
    from cellbridge.diffusion.prior import XTPrior
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
    unseen: bool = False
    """Take a condition that neither the store nor the models know for one that the base is to read the name, SMILES or (of a compound
    that it was trained on) dose of; otherwise it is taken for a slip of the pen."""
    smiles: dict[str, str] = Field(default_factory=dict)
    """SMILES of unseen compounds by name, for a base that reads SMILES."""
    solver: SolverConfig = SolverConfig()
    x_T: XTOrigin = "inverted"
    """`inverted`: the cell's own noise; `fresh`: N(0, I), which gives new cells; `prior:DIR`: new cells out of the noise that each
    target really has, as a run of `fit-prior` found it."""
    x_T_references: NonNegativeInt = 0
    """Of so many cells, keep in `OUT_x_T.zarr` beside the result what their x_T is held against: x_T in twice the steps, of images
    that the source's model generated, and of training cells. Costs five inversions of each."""
    seed: Seed = 0
    batch_size: PositiveInt = 64
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: str = "auto"
    overwrite: bool = False
    """Replace `out`, if it is a store that `translate` made, and the references beside it."""

    @model_validator(mode="after")
    def _references_are_of_inverted_noise(self) -> "Config":
        if self.x_T_references and self.x_T != "inverted":
            raise ValueError(f"x_T_references are of inverted noise, found x_T = {self.x_T}; leave them out")
        return self


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Translate the cells and write a store whose rows are (target condition, source cell).

    Each image has a seed of its own, so the result does not depend on the batch size, nor on how many processes share the batches.
    What is translated waits on disk beside `out`, so that memory holds a few batches. The store keeps the noise `x_T` beside the
    images, for `evaluate` to test; noise of a prior is not kept, since the prior and the cell's seed give it again.

    Raises
    ------
    ConditionError : a source or target that the store or the models do not know, or that the prior was not fitted for.
    ModelError : an adapter or a prior that belongs to another base, or models that do not fit the store.
    StoreError, RunError : `out` is taken, or is not apart from the inputs.
    """
    info = describe(config.store)
    source = resolve(config.source or info.control, info.conditions, aliases=info.aliases)
    modelled = modelled_conditions(model_card(config.base), [model_card(path) for path in config.adapters])
    known = list(dict.fromkeys([*info.conditions, *modelled]))
    wanted = [resolve_or_read(t, known, aliases=info.aliases, unseen=config.unseen) for t in config.targets or ()]
    _check_out(config, out)

    from cellbridge import assembly
    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    base = assembly.with_smiles(assembly.load_base(config.base, device=device), config.smiles)
    assembly.check_fit(base.card, info)
    models = assembly.load_models(base, config.adapters, asked=wanted)
    targets, guides = _choose(wanted, tuple(models), source=source), assembly.load_guides(config.solver, base)
    translator = assembly.build_translator(
        config.method,
        models,
        source=source,
        solver=config.solver,
        x_T=_origin(config, base, models, targets=targets),
        targets=targets,
        guides=guides,
    )
    store = open_store(config.store)
    rows = _rows(config, store, source)
    results = _translated(config, store, translator, targets, rows, device=device)
    seen = _trained_on(config, base.card, models, source=source, targets=targets) | guides.plates
    attributes = _attributes(config, base, trained_on=seen)
    if not processes.is_main():
        for _ in results:
            pass
        _write_references(config, store, rows, models[source], attributes=attributes, out=out)
        return {}
    obs = _obs(store, rows, source=source, targets=targets, model=translator.name, seed=config.seed)
    with _regrouped(results, store, targets=len(targets), out=out) as images:
        attributes["share_clipped"] = images.share_clipped
        _write(out, store, rows, obs=obs, images=images, attributes=attributes, overwrite=config.overwrite)
    _write_references(config, store, rows, models[source], attributes=attributes, out=out)
    return {
        "store": str(out),
        "cells": len(rows),
        "targets": [t.name for t in targets],
        "share clipped": round(images.share_clipped, 6),
    }


def _check_out(config: Config, out: Path) -> None:
    prior = prior_run(config.x_T)
    others = (*config.adapters, *config.solver.guides.values(), *([] if prior is None else [prior]))
    require_apart(out, (config.store, config.base, *others))
    require_directory(out.parent)
    for path in (out, _references(out)) if config.x_T_references else (out,):
        _check_name(path, overwrite=config.overwrite)


def _references(out: Path) -> Path:
    return out.with_name(f"{out.stem}_x_T.zarr")


def _check_name(out: Path, *, overwrite: bool) -> None:
    if not is_taken(out):
        return
    if not overwrite:
        raise StoreError(f"{out}: exists already. Remove it, choose another name, or set overwrite=true.")
    try:
        replaceable = not {"share_clipped", "x_T_references"}.isdisjoint(describe(out).attributes)
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


def _origin(
    config: Config, base: "Base", models: "Mapping[Condition, Model]", *, targets: list[Condition]
) -> "Literal['inverted', 'fresh'] | Mapping[Condition, XTPrior]":
    """Return where x_T comes from: a word, or the prior of every target."""
    from cellbridge import assembly

    prior = prior_run(config.x_T)
    if prior is None:
        return "fresh" if config.x_T == "fresh" else "inverted"
    hashes = assembly.model_hashes(base, config.adapters, targets)
    return assembly.load_priors(prior, base=base, models=hashes)


def _trained_on(
    config: Config,
    base: "ModelCard",
    models: "Mapping[Condition, Model]",
    *,
    source: Condition,
    targets: list[Condition],
) -> dict[str, list[str]]:
    """Return the plates that each model behind the translation has seen, for `evaluate` to hold against those it judges on."""
    from cellbridge import assembly

    used = {c.name: models[c].card for c in (source, *targets) if c in targets or models[c].card is not base}
    seen = {"base": list(base.plates), **{name: list(card.plates) for name, card in used.items()}}
    prior = prior_run(config.x_T)
    fitted = {} if prior is None else assembly.prior_plates(prior, targets)
    return seen | {name: sorted({*seen[name], *plates}) for name, plates in fitted.items()}


def _attributes(config: Config, base: "Base", *, trained_on: dict[str, list[str]]) -> dict[str, Any]:
    """Return what the store says of how it was made."""
    import torch

    from cellbridge import assembly

    prior = prior_run(config.x_T)
    last = torch.tensor([base.schedule.steps - 1.0], dtype=torch.float64)
    return {
        "aliases": dict(describe(config.store).aliases),
        "made_by": code_version(),
        "config": config.model_dump(mode="json"),
        "inputs": {
            "store": fingerprint(config.store),
            "base": base.sha256,
            "adapters": [fingerprint(a) for a in config.adapters],
            **{name: fingerprint(path) for name, path in config.solver.guides.items()},
            **({} if prior is None else {"prior": fingerprint(prior)}),
        },
        "trained_on": trained_on,
        "alpha_T": float(base.schedule.alpha(last)),
        **({} if prior is None else {"prior_kind": assembly.read_prior_card(prior).prior}),
    }


def _write_references(
    config: Config, store: "Store", rows: "np.ndarray", model: "Model", *, attributes: dict[str, Any], out: Path
) -> None:
    """Write what x_T is held against, if it was asked for; all processes share the work."""
    if not config.x_T_references:
        return
    from cellbridge import assembly
    from cellbridge.inverting import Inverter, write_references
    from cellbridge.runtime import pick_device, pick_precision

    device = pick_device(config.device)
    inverter = Inverter(
        model,
        assembly.build_inversion(config.solver),
        device,
        pick_precision(config.precision, device),
        purpose="translate",
        seed=config.seed,
        batch_size=config.batch_size,
    )
    write_references(
        _references(out),
        store,
        rows,
        inverter,
        sampler=assembly.build_sampler(config.solver),
        doubled=assembly.build_inversion(config.solver.model_copy(update={"steps": 2 * config.solver.steps})),
        attributes=attributes | {"x_T_references": config.x_T_references},
        n=config.x_T_references,
        overwrite=config.overwrite,
    )


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
            noise: tuple[torch.Tensor, ...] = ()
            if isinstance(translator, Ddib) and translator.shares_noise:
                noise = (translator.encode(batch).float().cpu(),)
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
