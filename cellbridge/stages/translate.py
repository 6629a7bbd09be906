"""`cellbridge translate`: what these very cells would look like under a condition, as a store of cells."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellbridge import processes
from cellbridge.conditions import Condition, resolve, resolve_or_read
from cellbridge.data.store import StoreInfo, describe
from cellbridge.errors import ConditionError
from cellbridge.modelled import bridged_conditions, flowed_conditions, model_card, modelled_conditions
from cellbridge.runs import code_version, fingerprint
from cellbridge.translating.places import check_places, pictures, references, trajectories
from cellbridge.translating.settings import Config

if TYPE_CHECKING:
    from cellbridge.data.store import Store
    from cellbridge.translating.cells import Draws, Machine
    from cellbridge.translating.methods import Opened
    from cellbridge.translating.output import Making


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Translate the cells and write a store whose rows are (target condition, draw, source cell).

    Each draw of a cell has a seed of its own, so the result does not depend on the batch size, nor on how many processes share the batches.
    What is translated waits on disk beside `out`, so that memory holds a few batches. Where cells go over noise, the store keeps it
    (`x_T`) beside the images, for `evaluate` to test; noise of a prior is not kept, since the prior and the seed give it again.

    Raises
    ------
    ConditionError : a source or target that the store or the models do not know, or that the prior was not fitted for.
    ConfigError : a strength that the models do not reach, or fewer calls than the fewest steps take.
    ModelError : models that belong to another base or do not fit the store.
    StoreError, RunError : a name is taken, or is not apart from the inputs.
    """
    info = describe(config.store)
    source, wanted = _conditions(config, info)
    check_places(config, out)

    from cellbridge.data.store import open_store
    from cellbridge.runtime import pick_device, pick_precision
    from cellbridge.translating import cells
    from cellbridge.translating.methods import Asked, open_method
    from cellbridge.translating.output import Making

    device = pick_device(config.device)
    opened = open_method(config, info, Asked(source, wanted), device=device)
    if config.trajectories and all(target == source for target in opened.targets):
        raise ConditionError(
            "trajectories: the only target is the condition of the cells, to which none leads. Name another."
        )
    store = open_store(config.store)
    rows = cells.choose_rows(store, source, split=config.split, plates=config.plates, n=config.n, seed=config.seed)
    machine = cells.Machine(device, pick_precision(config.precision, device), config.batch_size, config.seed)
    making = Making(source, opened.targets, opened.translator.name, config.seed)
    clipped = _write(
        config, store, cells.drawn(rows, config.samples_per_cell), opened, making, machine=machine, out=out
    )
    _write_beside(config, store, rows, opened, making, machine=machine, out=out)
    return _summary(config, opened, making, out=out, cells=len(rows), share_clipped=clipped)


def _conditions(config: Config, info: StoreInfo) -> tuple[Condition, list[Condition]]:
    """Return the source and the targets that were asked for, from cards alone: a slip of the pen is told in a second."""
    source = resolve(config.source or info.control, info.conditions, aliases=info.aliases)
    adapters = [model_card(path) for path in config.adapters]
    modelled = [] if config.base is None else modelled_conditions(model_card(config.base), adapters)
    modelled += [condition for path in config.bridge for condition in bridged_conditions(path)]
    modelled += [] if config.baseline is None else flowed_conditions(config.baseline)
    known = list(dict.fromkeys([*info.conditions, *modelled]))
    wanted = [resolve_or_read(t, known, aliases=info.aliases, unseen=config.unseen) for t in config.targets or ()]
    return source, wanted


def _write(
    config: Config,
    store: "Store",
    draws: "Draws",
    opened: "Opened",
    making: "Making",
    *,
    machine: "Machine",
    out: Path,
) -> float:
    """Translate all draws and write the store; return the share of values that were clipped."""
    from cellbridge.translating.cells import translated
    from cellbridge.translating.output import regrouped, write_translations

    results = translated(store, draws, opened.translator, making.targets, machine)
    if not processes.is_main():
        for _ in results:
            pass
        return 0.0
    with regrouped(results, store, targets=len(making.targets), out=out) as images:
        attributes = _attributes(config, opened) | {"share_clipped": images.share_clipped}
        write_translations(out, store, draws, making, images, attributes=attributes, overwrite=config.overwrite)
        return images.share_clipped


def _write_beside(
    config: Config,
    store: "Store",
    rows: Any,
    opened: "Opened",
    making: "Making",
    *,
    machine: "Machine",
    out: Path,
) -> None:
    """Write trajectories and references of x_T, as far as they were asked for; all processes share the work."""
    if config.trajectories:
        from cellbridge.translating.trajectories import write_trajectories
        from cellbridge.translators.translator import TracedTranslator

        assert isinstance(opened.translator, TracedTranslator)
        write_trajectories(
            out,
            store,
            rows,
            opened.translator,
            making,
            machine=machine,
            n=config.trajectories,
            frames=config.frames,
            attributes=_attributes(config, opened),
            overwrite=config.overwrite,
        )
    if config.x_T_references:
        from cellbridge.translating.references import write_noise_references

        assert opened.inverted is not None
        assert opened.solver is not None
        write_noise_references(
            references(out),
            store,
            rows,
            opened.inverted,
            machine,
            solver=opened.solver,
            n=config.x_T_references,
            attributes=_attributes(config, opened),
            overwrite=config.overwrite,
        )


def _attributes(config: Config, opened: "Opened") -> dict[str, Any]:
    """Return what the stores say of how they were made."""
    written = config.model_dump(mode="json")
    if not config.keeps_noise:
        del written["x_T"]
    return {
        "aliases": dict(describe(config.store).aliases),
        "made_by": code_version(),
        "config": written,
        "inputs": {"store": fingerprint(config.store), **opened.inputs},
        "trained_on": dict(opened.trained_on),
        "steps": opened.steps,
        "network_calls": opened.calls,
        **opened.attributes,
    }


def _summary(
    config: Config, opened: "Opened", making: "Making", *, out: Path, cells: int, share_clipped: float
) -> dict[str, Any]:
    if not processes.is_main():
        return {}
    found: dict[str, Any] = {
        "store": str(out),
        "cells": cells,
        "targets": [target.name for target in making.targets],
        "model": making.model,
        "steps": opened.steps,
        "network calls a cell": opened.calls,
        "share clipped": round(share_clipped, 6),
    }
    if config.samples_per_cell > 1:
        found["draws of each cell"] = config.samples_per_cell
    if config.trajectories:
        found["trajectories"] = str(trajectories(out))
        found["pictures"] = [str(picture) for picture in pictures(out)]
    return found | dict(opened.notes)
