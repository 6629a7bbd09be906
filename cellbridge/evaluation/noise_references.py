"""x_T of every model beside what it is held against, read from the store of references that `translate` left beside its result."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellbridge.data.comparison import Comparison, Rows
from cellbridge.data.store import Store
from cellbridge.evaluation.arms import blocks_of_rows
from cellbridge.evaluation.sections import Column, Section, absent, table
from cellbridge.metrics.noise_changes import Noise
from cellbridge.metrics.noise_report import noise_report

_KIND, _DOUBLED, _GENERATED = "Metadata_Reference", "double steps", "generated"
_NAMES = {
    "fresh": "fresh noise",
    "diffused": "source images, noised",
    _GENERATED: "generated, inverted again",
    _DOUBLED: "twice the steps",
    "train": "training cells",
}


def judge_x_T(
    noises: Mapping[str, NDArray[np.floating]],
    reference: Store,
    comparison: Comparison,
    *,
    translated: Store | None,
    references: Store | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Judge x_T of every model, beside fresh noise and every other reference that there is; see `metrics.noise_report`.

    Parameters
    ----------
    noises : model → x_T of the comparison's source cells.
    translated : store of the first model's outputs; says what its schedule leaves of an image (`alpha_T`).
    references : the store that `translate --set x_T_references=N` wrote; None where there is none.
    """
    if not noises:
        return {"not_computed": "the translated store holds no x_T"}
    if len(comparison.sources) < 2:
        return {"not_computed": "one cell; two or more are needed"}
    cells = comparison.sources
    models = {name: _noise(reference, cells, x_T) for name, x_T in noises.items()}
    held: dict[str, Noise] = {}
    same = None
    if references is not None:
        held, rows = _references(references, comparison)
        first = next(iter(models.values()))
        same, held = _same_cells(first, cells, reference, references, rows, held)
    alpha_T = None if translated is None else translated.info.attributes.get("alpha_T")
    return noise_report(
        models,
        references=held,
        same_cells=same,
        alpha_T=None if alpha_T is None else float(alpha_T),
        resamples=resamples,
        seed=seed,
    )


def x_T_section(noise: Mapping[str, Any]) -> Section:
    """Return the effects of every test as a table: a row per model and reference, a column per property."""
    title = "x_T: is it standard normal noise?"
    if "not_computed" in noise:
        return absent("x_T", title, str(noise["not_computed"]))
    found = {name: (tests, noise["classifier"][name], "model") for name, tests in noise["models"].items()}
    found["fresh"] = (noise["fresh"], noise["classifier"]["fresh"], "null")
    for name, entry in noise["references"].items():
        if "tests" in entry:
            found[name] = (entry["tests"], entry["classifier"], "null")
    names = list(dict.fromkeys(test["name"] for tests, _, _ in found.values() for test in tests))
    rows: list[dict[str, Any]] = []
    for name, (tests, told, kind) in found.items():
        label = name if kind == "model" else _NAMES.get(name, name)
        row: dict[str, Any] = {"name": label, "key": name, "kind": kind}
        row |= {_column(test["name"]): _cell(test) for test in tests}
        rows.append(row | {"classifier": _cell(told) if "effect" in told else dict(told)})
    columns = [Column(_column(name), name, digits=3) for name in names]
    columns.append(Column("classifier", "told from noise", digits=0, factor=100.0, unit="%"))
    gates = {t["name"]: t["gate"] for tests, _, _ in found.values() for t in tests if t["gate"]}
    limits = "; ".join(f"{name} {low:g} … {high:g}" for name, (low, high) in gates.items())
    about = (
        "How far the noise that translations start from is from N(0, I), with intervals over wells; p-values are in metrics.json, since "
        "with millions of pixels they all reject. Twice the steps: what is then less is the solver's; what generated images, inverted "
        "again, show is solver and model without any real cell; training cells leave the misfit to new cells out."
    )
    return table(
        "x_T", title, about, columns=columns, rows=rows, notes=[f"Harmless: {limits}; told from noise below 60 %."]
    )


def _noise(store: Store, rows: Rows, x_T: NDArray[np.floating], *, masked: bool = True) -> Noise:
    masks = store.masks(rows) if masked else None
    return Noise(x_T, store.images(rows), None if masks is None else masks > 0, blocks_of_rows(store, rows))


def _references(store: Store, comparison: Comparison) -> tuple[dict[str, Noise], dict[str, Rows]]:
    """Return the noise of each kind of reference under the comparison's source condition, and its rows."""
    kinds = store.obs[_KIND].to_numpy()
    of_source = store.condition_names == comparison.source
    rows = {kind: np.flatnonzero(of_source & (kinds == kind)) for kind in dict.fromkeys(kinds)}
    held = {}
    for kind, of_kind in rows.items():
        x_T = store.x_T(of_kind)
        if x_T is not None and len(of_kind):
            held[kind] = _noise(store, of_kind, x_T, masked=kind != _GENERATED)
    return held, rows


def _same_cells(
    first: Noise, cells: Rows, reference: Store, references: Store, rows: Mapping[str, Rows], held: dict[str, Noise]
) -> tuple[Noise | None, dict[str, Noise]]:
    """Return the first model's noise of the cells that were inverted in twice the steps, and the references with those alone."""
    doubled = held.get(_DOUBLED)
    if doubled is None:
        return None, held
    place = {cell: index for index, cell in enumerate(reference.obs["Metadata_Cell"].to_numpy()[cells])}
    ids = references.obs["Metadata_SourceCell"].to_numpy()[rows[_DOUBLED]]
    common = np.array([index for index, cell in enumerate(ids) if cell in place], dtype=np.int64)
    if len(common) < 2:
        return None, {name: noise for name, noise in held.items() if name != _DOUBLED}
    here = np.array([place[ids[index]] for index in common], dtype=np.int64)
    return _take(first, here), {**held, _DOUBLED: _take(doubled, common)}


def _take(noise: Noise, rows: Rows) -> Noise:
    return Noise(
        noise.x_T[rows],
        None if noise.x_0 is None else noise.x_0[rows],
        None if noise.foreground is None else noise.foreground[rows],
        None if noise.blocks is None else noise.blocks.take(rows),
    )


def _column(name: str) -> str:
    return name.replace(" ", "_").replace("/", "over")


def _cell(test: Mapping[str, Any]) -> dict[str, Any]:
    if test["low"] is None:
        return {"value": test["effect"]}
    return {"value": test["effect"], "low": test["low"], "high": test["high"]}
