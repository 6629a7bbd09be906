"""`cellbridge fit-prior`: the law that x_T of a condition really has, fitted to inverted training cells.

`translate` and `generate` draw x_T from it with `--x-T prior:DIR`. Cells come from the training split of the model's own training plates,
so that it is judged on others.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cellbridge.conditions import Condition, resolve
from cellbridge.config import SolverConfig
from cellbridge.data.store import describe
from cellbridge.errors import ConditionError, NumericalError, RunError, StoreError, did_you_mean
from cellbridge.outputs import require_apart, require_directory
from cellbridge.progress import bar
from cellbridge.runs import RunDir, begin, fingerprint, is_taken
from cellbridge.settings import Section, Seed, dump

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from cellbridge.assembly import Model
    from cellbridge.data.store import Store
    from cellbridge.diffusion.prior import XTPrior

_FEWEST = 10


class Config(Section):
    """Settings of `fit-prior`."""

    store: Path
    base: Path
    adapters: tuple[Path, ...] = ()
    conditions: tuple[str, ...] | None = None
    """The conditions to fit a prior of; None is the control and every condition that an adapter models."""
    kind: Literal["field", "bank", "flow"] = "field"
    """`field`: Gaussian, of a power and a correlation of channels at each radial frequency; `bank`: between two inverted noises, and so near
    to the training cells that these are of; `flow`: a normalising flow on the low frequencies, white above them."""
    n: int = Field(default=512, ge=_FEWEST)
    """Training cells of each condition, drawn evenly over plates by the seed; all of them where there are fewer."""
    bins: int = Field(default=10, ge=1)
    """Radial frequency bins of a field."""
    modes: int = Field(default=4, ge=1)
    """Low frequencies of a flow, along each axis."""
    solver: SolverConfig = SolverConfig()
    """Of the inversion; the one that `translate` inverts by, for its priors to be of the same noise."""
    seed: Seed = 0
    batch_size: int = Field(default=64, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: str = "auto"


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Invert training cells of each condition under its own model, fit the prior and publish `out/model`.

    Raises
    ------
    ConditionError : a condition that the store or the models do not know.
    StoreError : too few training cells. ModelError : models that do not fit the store. NumericalError : x_T is not finite.
    RunError : `out` is taken, or is not apart from the inputs.
    """
    info = describe(config.store)
    wanted = [resolve(name, info.conditions, aliases=info.aliases) for name in config.conditions or ()]
    require_apart(out, (config.store, config.base, *config.adapters))
    require_directory(out)
    if is_taken(out):
        raise RunError(f"{out}: exists already. Remove it, or choose another --out.")

    from cellbridge import assembly
    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    base = assembly.load_base(config.base, device=device)
    assembly.check_fit(base.card, info)
    models = assembly.load_models(base, config.adapters, asked=wanted)
    hashes = assembly.model_hashes(base, config.adapters, models)
    chosen = wanted or [c for c in models if c.name == info.control or hashes[c] != base.sha256]
    store = open_store(config.store)
    rows = {condition: _rows(config, store, models, condition) for condition in chosen}
    run_dir = RunDir(out)
    inputs = {"store": config.store, "base": config.base} | {
        f"adapter {i}": path for i, path in enumerate(config.adapters)
    }
    begin(run_dir, config=dump(config), seed=config.seed, inputs=inputs)
    priors = {}
    with bar("fit-prior", total=sum(map(len, rows.values())), unit="cells") as shown:
        for condition, of_condition in rows.items():
            x_T = _noise(config, store, of_condition, models[condition], device=device, advance=shown.advance)
            priors[condition] = _fitted(config, x_T, condition)
    card = assembly.PriorCard(
        prior=config.kind,
        channels=info.channels,
        size_px=info.size_px,
        base_sha256=base.sha256,
        store_sha256=fingerprint(config.store),
        solver=config.solver,
        conditions={
            condition.name: assembly.PriorEntry(
                file=f"prior-{index}.safetensors",
                model_sha256=hashes[condition],
                n=len(of_condition),
                plates=tuple(sorted(set(store.plates[of_condition]))),
            )
            for index, (condition, of_condition) in enumerate(rows.items())
        },
    )
    assembly.publish_priors(run_dir, priors, card)
    return {"model": str(run_dir.model), "kind": config.kind, "cells": {c.name: len(r) for c, r in rows.items()}}


def _rows(config: Config, store: "Store", models: "dict[Condition, Model]", condition: Condition) -> "np.ndarray":
    """Return the cells that a condition's prior is fitted to: of the training split, on plates that its model was trained on."""
    import numpy as np

    from cellbridge.data.balance import draw_evenly

    if condition not in models:
        raise ConditionError(
            f'no model of "{condition.name}" was given: run `cellbridge finetune --condition "{condition.name}"` and pass its run '
            f"as --adapter.{did_you_mean(condition.name, [known.name for known in models])}"
        )
    plates = models[condition].card.plates
    training = (store.obs["Metadata_Split"] == "train").to_numpy() & np.isin(store.plates, list(plates))
    rows = np.flatnonzero(training & (store.condition_names == condition.name))
    if len(rows) < _FEWEST:
        raise StoreError(
            f"{config.store}: {len(rows)} training cell(s) of {condition.name} on the plates of its model ({', '.join(plates)}); "
            f"a prior needs {_FEWEST} or more."
        )
    return draw_evenly(rows, store.plates[rows], n=config.n, seed=config.seed)


def _noise(
    config: Config, store: "Store", rows: "np.ndarray", model: "Model", *, device: "torch.device", advance: Any
) -> "Tensor":
    """Return x_T of the cells."""
    import torch

    from cellbridge.assembly import build_inversion
    from cellbridge.inverting import Inverter, inverted
    from cellbridge.runtime import pick_precision

    inverter = Inverter(
        model,
        build_inversion(config.solver),
        device,
        pick_precision(config.precision, device),
        purpose="fit-prior",
        seed=config.seed,
        batch_size=config.batch_size,
    )
    parts = []
    for part in inverted(store, rows, inverter):
        parts.append(part)
        advance(len(part))
    return torch.cat(parts)


def _fitted(config: Config, x_T: "Tensor", condition: Condition) -> "XTPrior":
    import torch

    from cellbridge.diffusion.noise_bank import fit_bank
    from cellbridge.diffusion.noise_field import fit_field
    from cellbridge.diffusion.noise_flow import fit_flow

    broken = int((~torch.isfinite(x_T)).flatten(1).any(dim=1).sum())
    if broken:
        raise NumericalError(
            f"x_T of {broken} of {len(x_T)} cells of {condition.name} is not finite. Invert with more solver steps, or in fp32."
        )
    if config.kind == "field":
        return fit_field(x_T, bins=config.bins)
    if config.kind == "bank":
        return fit_bank(x_T, items=len(x_T))
    return fit_flow(x_T, modes=config.modes, seed=config.seed)
