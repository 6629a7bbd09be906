"""A store: its files against its manifest, its table against its attributes, and every cell's bytes and pixels."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellbridge import runs
from cellbridge.data.store import REMEDY, REQUIRED, StoreInfo, condition_of, read_info
from cellbridge.data.validation.problems import Findings
from cellbridge.data.validation.shard_reading import ReadingShards, SeenCells
from cellbridge.errors import CheckpointError, StoreError, in_one_line

if TYPE_CHECKING:
    import pandas as pd

ARRAYS = ("images", "masks", "x_T")


Shared = Callable[[ReadingShards, int], Iterator[tuple[int, SeenCells]]]


def check_store(path: Path, findings: Findings, *, deep: bool, max_saturated: float, share: Shared) -> None:
    """Note everything that is wrong with a store; memory holds its table, and of the images some hundred cells.

    Parameters
    ----------
    share : how the work is shared among processes.
    """
    listed = _check_files(path, findings, deep=deep)
    try:
        info = read_info(path)
    except StoreError as error:
        findings.add_text("store", str(error), default=path)
        return
    _check_maps(info, findings)
    obs = _table(info, findings)
    if obs is not None:
        _check_table(obs, info, findings)
    findings.looked_at |= {"cells": info.n_cells, "cells_read_whole": 0}
    if not deep:
        return
    layout = _arrays(info, findings)
    if "images" not in layout:
        return
    reading = ReadingShards(path, tuple(layout), layout["images"], info.n_cells, info.channels, max_saturated)
    blocks = dict(share(reading, -(-info.n_cells // layout["images"])))
    seen = [blocks[number] for number in sorted(blocks)]
    for one in seen:
        findings.problems.extend(one.problems)
    digests = [digest for one in seen for digest in one.digests]
    findings.looked_at |= {"cells_read_whole": sum(one.n_read for one in seen), "files": len(listed)}
    names = [str(number) for number in range(info.n_cells)] if obs is None else list(obs["Metadata_Cell"].astype(str))
    _check_saturation(seen, names, info, findings)
    if obs is not None and len(obs) == len(digests):
        _check_repeats(digests, obs, info, findings)


def _check_files(path: Path, findings: Findings, *, deep: bool) -> dict[str, Any]:
    """Note files that are missing or changed since the manifest was written; without `deep` sums are taken of JSON only."""
    try:
        listed: dict[str, Any] = runs.read_manifest(path)["files"]
    except CheckpointError as error:
        findings.add("store", str(error).rstrip("."), REMEDY, file=path / runs.MANIFEST)
        return {}
    for name, entry in sorted(listed.items()):
        file = path / name
        if not file.is_file():
            findings.add(
                "missing_file", f"{runs.MANIFEST} lists it, but it is not there{_cells_of(name)}", REMEDY, file=file
            )
        elif file.stat().st_size != entry["bytes"]:
            found = f"{file.stat().st_size} bytes, {runs.MANIFEST} says {entry['bytes']}"
            findings.add("changed_file", found, REMEDY, file=file)
        elif (deep or name.endswith(".json")) and runs.file_sha256(file) != entry["sha256"]:
            findings.add("changed_file", f"sha256 differs from {runs.MANIFEST}", REMEDY, file=file)
    apart = (runs.MANIFEST, runs.PROVENANCE)
    for file in sorted(place for place in path.rglob("*") if place.is_file()):
        name = file.relative_to(path).as_posix()
        if name not in listed and name not in apart:
            findings.add(
                "unlisted_file", f"{runs.MANIFEST} does not list it", "Remove it; nothing reads it.", file=file
            )
    n_bytes = sum(entry["bytes"] for entry in listed.values())
    findings.looked_at |= {"files": len(listed), "bytes": n_bytes}
    return listed


def _cells_of(name: str) -> str:
    """Return a word on what is lost with a shard; zarr by itself would read it as zeros."""
    return " (zarr would read its cells as zeros)" if "/c/" in f"/{name}" else ""


def _check_maps(info: StoreInfo, findings: Findings) -> None:
    file = info.path / "zarr.json"
    try:
        maps = info.intensity_maps()
    except Exception as error:  # damaged attributes make it stumble over whatever they hold
        reason = in_one_line(error)
        findings.add("store", f"its intensity maps cannot be read ({reason})", REMEDY, file=file)
        return
    for plate, median, p999 in zip(maps.plates, maps.median.tolist(), maps.p999.tolist(), strict=True):
        for channel, low, high in zip(info.channels, median, p999, strict=True):
            if not (np.isfinite(low) and np.isfinite(high)):
                found = f"the intensity map of plate {plate} has median {low} and 99.9th percentile {high}"
                findings.add("nan", found, "Prepare the store again.", file=file, at=channel)
            elif high <= low:
                found = f"the intensity map of plate {plate} has its 99.9th percentile {high:g} at the median {low:g}"
                findings.add("constant", found, "Look at the plate's control wells.", file=file, at=channel)
    for plate in sorted(set(info.plates) - set(maps.plates)):
        findings.add("store", f"plate {plate} has no intensity map", REMEDY, file=file)


def _table(info: StoreInfo, findings: Findings) -> "pd.DataFrame | None":
    """Return the table of cells; note where it cannot be read."""
    import anndata
    import zarr

    try:
        group = zarr.open_group(info.path, mode="r", use_consolidated=False)
        obs: pd.DataFrame = anndata.io.read_elem(group["table/obs"])
        return obs
    except Exception as error:  # zarr and anndata raise whatever damaged bytes make them stumble over
        reason = in_one_line(error)
        findings.add("cells", f"cannot be read ({reason})", REMEDY, file=info.path / "table")
        return None


def _check_table(obs: "pd.DataFrame", info: StoreInfo, findings: Findings) -> None:
    file, again = info.path / "table", "Prepare the store again."
    if len(obs) != info.n_cells:
        findings.add("cells", f"{len(obs)} rows, the store's attributes say {info.n_cells}", again, file=file)
    missing = [name for name in REQUIRED if name not in obs.columns]
    for name in missing:
        findings.add("cells", "the column is missing", again, file=file, at=name)
    for name in obs.columns:
        values = obs[name].to_numpy()
        if values.dtype.kind == "f" and (bad := int((~np.isfinite(values)).sum())):
            found = f"{bad} of {len(obs)} values are NaN or infinite"
            findings.add(
                "not_finite", found, "Nothing needs to be done where nothing was measured.", file=file, at=name
            )
    if missing:
        return
    text = obs[list(REQUIRED)].astype(str)
    for row in np.flatnonzero(text["Metadata_Cell"].duplicated()):
        found = f'"{text["Metadata_Cell"].iloc[row]}" stands twice'
        findings.add("cells", found, again, file=file, row=int(row), at="Metadata_Cell")
    for plate in sorted(set(text["Metadata_Plate"]) ^ set(info.plates)):
        findings.add("cells", f'plate "{plate}" is in one of table and attributes only', again, file=file)
    _check_conditions(text, info, findings)
    sides: dict[tuple[str, str], set[str]] = {}
    for plate, well, split in text[["Metadata_Plate", "Metadata_Well", "Metadata_Split"]].itertuples(index=False):
        sides.setdefault((plate, well), set()).add(split)
    for (plate, well), splits in sides.items():
        if len(splits) > 1:
            found = f"plate {plate} well {well} has cells in {', '.join(sorted(splits))}"
            findings.add("leak", found, "Prepare the store again with a split by plate or well.", file=file)


def _check_conditions(text: "pd.DataFrame", info: StoreInfo, findings: Findings) -> None:
    counts: Counter[str] = Counter()
    pairs = Counter(zip(text["Metadata_Compound"], text["Metadata_Concentration"], strict=True))
    for (compound, concentration), number in pairs.items():
        try:
            counts[condition_of(compound, concentration, control=info.control).name] += number
        except StoreError as error:
            findings.add_text("cells", str(error), default=info.path / "table")
    for name in sorted(set(counts) | set(info.n_by_condition)):
        if counts[name] != info.n_by_condition.get(name, 0):
            found = f'condition "{name}" has {counts[name]} rows, the attributes say {info.n_by_condition.get(name, 0)}'
            findings.add("cells", found, "Prepare the store again.", file=info.path / "table")


def _arrays(info: StoreInfo, findings: Findings) -> dict[str, int]:
    """Return array → cells per shard, of those that can be opened and have one entry per cell."""
    import zarr

    found: dict[str, int] = {}
    for name in ARRAYS:
        folder = info.path / name
        if name != "images" and not folder.is_dir():
            continue
        try:
            array: Any = zarr.open_array(str(folder), mode="r")
        except Exception as error:  # zarr raises whatever its metadata makes it stumble over
            reason = in_one_line(error)
            findings.add("store", f"cannot be opened ({reason})", REMEDY, file=folder)
            continue
        image = (info.n_cells, len(info.channels), info.size_px, info.size_px)
        expected = (image[0], *image[2:]) if name == "masks" else image
        if tuple(array.shape) != expected:
            findings.add(
                "shape", f"shape {tuple(array.shape)}, expected {expected}", "Prepare the store again.", file=folder
            )
            continue
        found[name] = int((array.shards or array.chunks)[0])
    return found


def _check_saturation(seen: Sequence[SeenCells], names: Sequence[str], info: StoreInfo, findings: Findings) -> None:
    for one in seen:
        for row, channel, share in one.saturated:
            found = f"cell {names[row]}: {share:.1%} of the pixels have the largest count"
            remedy = "Prepare with quality.max_saturation, or leave it."
            findings.add("saturated_cell", found, remedy, file=info.path / "images", row=row, at=info.channels[channel])


def _check_repeats(digests: Sequence[str], obs: "pd.DataFrame", info: StoreInfo, findings: Findings) -> None:
    """Note cells with the pixels of another one; of two that are not real (renderings, outputs) they are remarked only."""
    text = {name: list(obs[name].astype(str)) for name in ("Metadata_Cell", "Metadata_Split")}
    origin = list(obs["Metadata_Origin"].astype(str)) if "Metadata_Origin" in obs else [""] * len(obs)
    first: dict[str, int] = {}
    for row, digest in enumerate(digests):
        other = first.setdefault(digest, row) if digest else row
        if other == row:
            continue
        cells = f"cell {text['Metadata_Cell'][row]} has the pixels of cell {text['Metadata_Cell'][other]}"
        real = origin[row] in ("", "real") and origin[other] in ("", "real")
        sides = sorted({text["Metadata_Split"][row], text["Metadata_Split"][other]})
        kind = "same_copy" if not real else "leak" if len(sides) > 1 else "duplicate"
        where = f"{cells}, one in {sides[0]} and one in {sides[-1]}" if kind == "leak" else cells
        remedy = (
            "Nothing needs to be done."
            if kind == "same_copy"
            else "Take one of them out of the tables, and prepare again."
        )
        findings.add(kind, where, remedy, file=info.path / "images", row=row, at="")
