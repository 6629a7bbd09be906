"""The suite `data`: what preparing a plate and loading its cells cost, against what one would write by hand.

    cellbridge benchmark data [--parts ingest,loader] [--quick]

| part | cellbridge against | goal |
|---|---|---|
| ingest | a straightforward scikit-image script that stores identical crops, one process each | ≥ 1.5 times as fast |
| processes | itself in one process, two processes of one thread each | ≥ 1.6 times as fast |
| loader | a gather from a memory-mapped array of plain counts, with the same arithmetic on the batch | ≥ 0.9 times as fast |
| memory | itself on a tenth of the fields | at most 1.2 times the peak |
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import parts as suite_parts
import torch
from claims import Row, not_measured, row
from ingest_child import prepare
from ingest_script import ingest as script
from interleaved import interleave, paired_ratio
from numcodecs import blosc
from painted_plate import CHANNELS, CROP_PX, write_plate
from threadpoolctl import threadpool_limits
from torch import Tensor

from cellbridge.data import augment
from cellbridge.data.dataset import BatchSource, CellData
from cellbridge.data.intensity import IntensityMaps
from cellbridge.data.store import Store, open_store
from cellbridge.runtime import generator, pick_device


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Parameters
    ----------
    fields, field_px, cells : of the plate of the part `ingest`; cells of each field.
    shared_fields : fields of the part `processes`.
    blocks : turns of each contender.
    batch, batches : of the loader: cells of a batch, and batches of a block.
    few_fields, memory_px, memory_cells : of the part `memory`, which prepares ten times as many fields besides.
    """

    fields: int = 12
    field_px: int = 1080
    cells: int = 190
    shared_fields: int = 36
    blocks: int = 5
    batch: int = 64
    batches: int = 20
    few_fields: int = 24
    memory_px: int = 540
    memory_cells: int = 100


FULL = Size()
QUICK = Size(
    fields=12,
    field_px=540,
    cells=50,
    shared_fields=24,
    blocks=4,
    batches=8,
    few_fields=10,
    memory_px=256,
    memory_cells=40,
)
SMALLEST = Size(
    fields=2,
    field_px=160,
    cells=6,
    shared_fields=2,
    blocks=2,
    batch=4,
    batches=2,
    few_fields=1,
    memory_px=160,
    memory_cells=6,
)
"""For the tests of the suite itself: its numbers mean nothing."""


_CELL_KIB = (2 * len(CHANNELS) + 1) * CROP_PX**2 / 1024


def run(*, parts: Sequence[str] | None = None, quick: bool = False, device: str = "auto") -> dict[str, Any]:
    """Measure the parts asked for (all by default), and return their rows, details, seconds and peaks of memory.

    Raises
    ------
    ConfigError : there is no such part.
    """
    return measure(parts, size=QUICK if quick else FULL, device=pick_device(device))


def measure(parts: Sequence[str] | None, *, size: Size, device: torch.device) -> dict[str, Any]:
    """Measure the parts at a size, each process on one thread."""
    before, packing = torch.get_num_threads(), blosc.get_nthreads()
    torch.set_num_threads(1)
    blosc.set_nthreads(1)
    try:
        with threadpool_limits(1):
            return suite_parts.measured("data", PARTS, parts, size=size, device=device) | {"size": vars(size)}
    finally:
        torch.set_num_threads(before)
        blosc.set_nthreads(packing)


def ingest(size: Size, device: torch.device) -> dict[str, Any]:
    """Fields to a store, in one process each; both read the same files and store the same crops and masks."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plate = write_plate(folder / "plate", fields=size.fields, field_px=size.field_px, cells=size.cells)
        makers: dict[str, Callable[[Path], object]] = {
            "script": lambda out: script(plate, out),
            "careful script": lambda out: script(plate, out, careful=True),
            "cellbridge": lambda out: prepare(plate, out, workers=1),
        }
        made: dict[str, list[Path]] = {name: [] for name in makers}
        turns = {name: _into_new(make, folder / name, made[name]) for name, make in makers.items()}
        times = interleave(turns, blocks=size.blocks)
        same, cells = _same_cells([stores[-1] for stores in made.values()])
    claim = f"ingest of {size.fields} fields of {size.field_px} px, {cells} cells"
    wall, processor = (paired_ratio(times["script"], times["cellbridge"], clock=clock) for clock in (0, 1))
    careful = paired_ratio(times["careful script"], times["cellbridge"])
    rows = [
        row(claim, wall.value, interval=wall.interval, at_least=1.5, unit="times as fast"),
        row("… in processor time", processor.value, interval=processor.interval, unit="times as fast"),
        row(
            "… against a script that cuts masks from windows",
            careful.value,
            interval=careful.interval,
            unit="times as fast",
        ),
        row("… share of identical crops and masks", same, at_least=1.0),
        row("… fields a second", size.fields / float(np.median(times["cellbridge"][:, 0])), unit="fields/s"),
    ]
    return {"rows": rows, "seconds": {name: values.tolist() for name, values in times.items()}}


def processes(size: Size, device: torch.device) -> dict[str, Any]:
    """Two processes against one; starting them is part of it."""
    claim = f"{size.shared_fields} fields by two processes, one thread each"
    if len(os.sched_getaffinity(0)) < 2:
        return {"rows": [not_measured(claim, "this machine has one processor")]}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plate = write_plate(folder / "plate", fields=size.shared_fields, field_px=size.field_px, cells=size.cells)
        made: dict[int, list[Path]] = {1: [], 2: []}
        turns = {
            str(n): _into_new(lambda out, n=n: prepare(plate, out, workers=n), folder / str(n), made[n]) for n in (1, 2)
        }
        times = interleave(turns, blocks=max(2, size.blocks // 2), warm_up=0)
        same = {_manifest(store) for n in (1, 2) for store in made[n]}
    ratio = paired_ratio(times["1"], times["2"])
    return {
        "rows": [
            row(claim, ratio.value, interval=ratio.interval, at_least=1.6, unit="times as fast"),
            row("… same store, bit for bit, each time", float(len(same) == 1), at_least=1.0),
        ],
        "seconds": {name: values.tolist() for name, values in times.items()},
    }


def loader(size: Size, device: torch.device) -> dict[str, Any]:
    """Batches of cells in memory, and of cells in the store's files, against a memory-mapped gather."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plate = write_plate(folder / "plate", fields=size.fields, field_px=size.field_px, cells=size.cells)
        prepare(plate, folder / "s.zarr", workers=1)
        store = open_store(folder / "s.zarr")
        rows = np.arange(store.info.n_cells)
        sources = {place: _source(store, rows, size, device, place=place) for place in ("memory", "files")}
        mapped = _Mapped(folder / "counts.npy", store, sources["memory"], device)
        turns = {"mapped": _in_steps(mapped), **{place: _in_steps(source) for place, source in sources.items()}}
        same = torch.equal(mapped(0), sources["memory"](0).images)
        wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else None
        times = interleave(turns, blocks=2 * size.blocks, steps=size.batches, synchronize=wait)
    claim = f"batches of {size.batch} cells of {len(CHANNELS)} x {CROP_PX} x {CROP_PX}"
    found = [_loader_row(f"{claim}, {place}", times["mapped"], times[place]) for place in sources]
    per_second = size.batch / float(np.median(times["memory"][:, 0]))
    return {
        "rows": [
            *found,
            row("… same batches as the gather, bit for bit", float(same), at_least=1.0),
            row("… from memory", per_second, unit="cells/s"),
        ]
    }


def memory(size: Size, device: torch.device) -> dict[str, Any]:
    """Peaks of memory of child processes that prepare few fields, and ten times as many."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        found = {}
        for fields in (size.few_fields, 10 * size.few_fields):
            plate = write_plate(folder / f"{fields}", fields=fields, field_px=size.memory_px, cells=size.memory_cells)
            child = [sys.executable, str(Path(__file__).with_name("ingest_child.py")), str(plate)]
            done = subprocess.run([*child, str(folder / f"{fields}.zarr")], capture_output=True, text=True, check=True)
            found[fields] = json.loads(done.stdout)
    few, many = found.values()
    grown, more = many["peak_mib"] - few["peak_mib"], many["cells"] - few["cells"]
    claim = f"peak of preparing {10 * size.few_fields} fields / {size.few_fields}, {size.memory_px} px"
    return {
        "rows": [
            row(claim, many["peak_mib"] / few["peak_mib"], at_most=1.2),
            row(f"… of {many['cells']} cells", many["peak_mib"], unit="MiB"),
            row(f"… of {few['cells']} cells", few["peak_mib"], unit="MiB"),
            row("… when all is imported and nothing read", few["started_mib"], unit="MiB"),
            row(f"… growth a cell, of {_CELL_KIB:.0f} KiB of counts and mask", 1024 * grown / more, unit="KiB"),
        ]
    }


Part = Callable[[Size, torch.device], dict[str, Any]]
PARTS: Mapping[str, Part] = MappingProxyType(
    {"ingest": ingest, "processes": processes, "loader": loader, "memory": memory}
)


def _into_new(make: Callable[[Path], Any], stem: Path, made: list[Path]) -> Callable[[], None]:
    """Return a step that makes a new store each time."""
    numbers = count()

    def step() -> None:
        made.append(stem.with_name(f"{stem.name}-{next(numbers)}.zarr"))
        make(made[-1])

    return step


def _same_cells(stores: Sequence[Path]) -> tuple[float, int]:
    """Return the share of cells whose crop and mask are the same in all stores, of all that any has; and how many the last has."""
    import zarr

    groups = [zarr.open_group(path, mode="r", use_consolidated=False) for path in stores]
    found = [{image.tobytes() + mask.tobytes() for image, mask in _cells(group)} for group in groups]
    return len(set.intersection(*found)) / len(set.union(*found)), len(found[-1])


def _cells(group: Any) -> Any:
    return zip(group["images"][:], group["masks"][:], strict=True)


def _manifest(store: Path) -> str:
    return (store / "manifest.json").read_text()


def _source(store: Store, rows: np.ndarray, size: Size, device: torch.device, *, place: Any) -> BatchSource:
    labels = torch.zeros(len(rows), dtype=torch.int64)
    data = CellData.load(store, rows, labels=labels, device=device, place=place)
    return BatchSource(data, batch_size=size.batch, seed=0)


class _Mapped:
    """What one would write by hand: rows of a memory-mapped array of counts, then the same arithmetic."""

    def __init__(self, file: Path, store: Store, order: BatchSource, device: torch.device):
        np.save(file, store.counts(np.arange(store.info.n_cells)))
        self._counts = np.load(file, mmap_mode="r")
        maps: IntensityMaps = store.intensity
        self._terms = maps.terms.to(device, torch.float32)
        self._plate = maps.plate_rows(list(store.plates)).to(device)
        self._order, self._device, self._full_scale = order, device, maps.full_scale

    def __call__(self, step: int) -> Tensor:
        rows = self._order.rows(step)
        drawn = generator(self._device, "augment", 0, step)
        counts = torch.from_numpy(self._counts[rows.numpy()].astype(np.float32)).to(self._device)
        counts = augment.dequantise(counts, full_scale=self._full_scale, generator=drawn)
        images = self._terms.at(self._plate[rows.to(self._device)]).forward(counts)
        return augment.dihedral(images, augment.draw_dihedral(len(rows), generator=drawn)).clamp_(-1.0, 1.0)


def _in_steps(make: Callable[[int], Any]) -> Callable[[], Any]:
    numbers = count()
    return lambda: make(next(numbers))


def _loader_row(claim: str, mapped: Any, ours: Any) -> Row:
    ratio = paired_ratio(mapped, ours)
    return row(claim, ratio.value, interval=ratio.interval, at_least=0.9, unit="times as fast")
