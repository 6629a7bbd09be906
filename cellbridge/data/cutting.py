"""From rows of the tables to finished pieces: what one process does with some of them, and how a piece lies on disk.

A piece of cells holds their columns of the store's table as JSON, and their images and masks as they will stand in a shard, so that
the store is put together from pieces without decoding them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cellbridge.data import shards
from cellbridge.data.extraction import Extracted, Geometry, cell_of_crop, cells_of_field, crop_numbers
from cellbridge.data.manifest import Manifest
from cellbridge.data.pieces import Piece, Pieces, code_sum, fingerprint, stamps
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.survey import Flats, Look, look
from cellbridge.errors import ImageError

CROPS_AT_ONCE = 64


@dataclass(frozen=True)
class Looking:
    """Look at the fields of a data set: number → problems, with the look kept as a piece.

    Parameters
    ----------
    light : take what the light is estimated from.
    code : the hash of the program, of which other versions make other pieces.
    """

    rows: Sequence[ImageRow]
    channels: tuple[str, ...]
    full_scale: int
    light: bool
    pieces: Pieces
    code: str = field(default_factory=code_sum)

    def fingerprint(self, number: int) -> str:
        """Return what the piece of a field is made from."""
        row = self.rows[number]
        return fingerprint("look", self.code, _files(row), row.where, self.channels, self.full_scale, self.light)

    def __call__(self, number: int) -> None:
        made_from = self.fingerprint(number)
        seen = look(self.rows[number], self.channels, full_scale=self.full_scale, light=self.light)
        head = {"digests": seen.digests, "bits": seen.bits, "shapes": seen.shapes, "problems": seen.problems}
        blocks = {channel: list(values.shape) for channel, values in seen.blocks.items()}
        body = tuple(values.tobytes() for values in seen.blocks.values())
        self.pieces.write(number, Piece({**head, "blocks": blocks}, body), fingerprint=made_from)

    def seen(self, number: int) -> Look:
        """Return what was found at a field; raise StoreError where its piece is not there."""
        piece = self.pieces.read(number, fingerprint=self.fingerprint(number))
        head = piece.head
        blocks = {
            channel: np.frombuffer(part, np.float32).reshape(shape)
            for (channel, shape), part in zip(head["blocks"].items(), piece.body, strict=True)
        }
        shapes = {channel: (shape[0], shape[1]) for channel, shape in head["shapes"].items()}
        return Look(shapes, head["digests"], head["bits"], blocks, tuple(head["problems"]))


@dataclass(frozen=True)
class KnownSource:
    """The store whose cells are cut again, and how they are joined with known objects.

    Parameters
    ----------
    store, sha256 : its path, and the hash of its content.
    objects : a table of objects; None joins nothing.
    """

    store: Path
    sha256: str
    objects: Path | None
    match_px: float


@dataclass(frozen=True)
class RowCells:
    """The cells of one row, as a piece tells of them.

    Parameters
    ----------
    columns : name → one value per cell.
    n, without_mask : how many cells, and how many of them have an empty mask.
    """

    row: ImageRow
    columns: Mapping[str, list[Any]]
    n: int
    without_mask: int
    rejected: Mapping[str, int]
    digest: str
    bits: int


@dataclass(frozen=True)
class CellPiece:
    """The cells of one unit of work: row after row, and their images."""

    rows: tuple[RowCells, ...]
    counts: shards.Encoded
    masks: shards.Encoded | None


@dataclass(frozen=True)
class Cutting:
    """Cut the cells out of some rows: number of the unit → problems, with the cells kept as a piece where there are none.

    Parameters
    ----------
    flats : the estimated light of each plate.
    source : where the cells come from that are cut again; None finds them.
    """

    rows: Sequence[ImageRow]
    manifest: Manifest
    geometry: Geometry
    flats: Flats
    source: KnownSource | None
    pieces: Pieces
    code: str = field(default_factory=code_sum)
    _state: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # This process goes on working while a helper is sent the job: what it has read meanwhile stays here.
        return {**self.__dict__, "_state": {}}

    @cached_property
    def units(self) -> list[range]:
        """Which rows belong to each unit of work: a field each, or some crops."""
        step = 1 if self.manifest.holds_fields else CROPS_AT_ONCE
        return [range(start, min(start + step, len(self.rows))) for start in range(0, len(self.rows), step)]

    @cached_property
    def numbers(self) -> list[str]:
        """What the ids of ready-made crops end with."""
        return [] if self.manifest.holds_fields else crop_numbers(self.rows)

    @cached_property
    def _settings(self) -> str:
        keys = ("kind", "channels", "leave_out", "nucleus_channel", "cell_channel", "axes", "bits", "plate_format")
        manifest = {key: value for key, value in self.manifest.model_dump(mode="json").items() if key in keys}
        source: list[Any] = []
        if self.source is not None:
            objects = [] if self.source.objects is None else stamps([self.source.objects])
            source = [self.source.sha256, objects, self.source.match_px]
        weights = [] if self.geometry.weights is None else stamps([Path(self.geometry.weights)])
        return fingerprint("cut", self.code, manifest, asdict(self.geometry), weights, source)

    def fingerprint(self, number: int) -> str:
        """Return what the piece of a unit is made from."""
        rows = [self.rows[index] for index in self.units[number]]
        plates = sorted({row.plate for row in rows})
        light = {plate: {c: flat.coefficients for c, flat in self.flats.get(plate, {}).items()} for plate in plates}
        made_from = [[_files(row), _identity(row, again=self.source is not None)] for row in rows]
        numbers = [self.numbers[index] for index in self.units[number]] if self.numbers else []
        return fingerprint(self._settings, light, made_from, numbers)

    def __call__(self, number: int) -> list[str]:
        made_from = self.fingerprint(number)
        found, problems = [], []
        for index in self.units[number]:
            row = self.rows[index]
            try:
                found.append(self._extract(index))
            except ImageError as error:
                problems.append(f"{row.where}: {error}")
        if not problems:
            dtype = np.dtype(np.uint8 if self.manifest.full_scale <= 255 else np.uint16)
            self.pieces.write(number, _packed(found, dtype), fingerprint=made_from)
        return problems

    def cells(self, number: int) -> CellPiece:
        """Return the cells of a unit; raise StoreError where its piece is not there."""
        piece = self.pieces.read(number, fingerprint=self.fingerprint(number))
        head = piece.head
        rows = [self.rows[index] for index in self.units[number]]
        told = tuple(RowCells(row, **entry) for row, entry in zip(rows, head["rows"], strict=True))
        split = head["counts"]["n"]
        masks = None if head["masks"] is None else _unpacked(head["masks"], piece.body[split:])
        return CellPiece(told, _unpacked(head["counts"], piece.body[:split]), masks)

    def _extract(self, index: int) -> Extracted:
        row = self.rows[index]
        if self.source is not None:
            from cellbridge.data.recutting import same_cells

            return same_cells(row, self.manifest, self.geometry, known=self._known())
        if self.manifest.holds_fields:
            return cells_of_field(row, self.manifest, self.geometry, flats=self.flats.get(row.plate, {}))
        return cell_of_crop(row, self.numbers[index], self.manifest, self.geometry)

    def _known(self) -> Any:
        """Return the known cells, read once in every process."""
        if "known" not in self._state:
            from cellbridge.data.objects import KnownObjects
            from cellbridge.data.readers.tables import read_table
            from cellbridge.data.recutting import KnownCells
            from cellbridge.data.store import open_store

            assert self.source is not None
            objects = None
            if self.source.objects is not None:
                objects = KnownObjects(read_table(self.source.objects), plate_format=self.manifest.plate_format)
            store = open_store(self.source.store)
            self._state["known"] = KnownCells.of_store(store, objects=objects, radius_px=self.source.match_px)
        return self._state["known"]


def _files(row: ImageRow) -> list[Any]:
    """Return which images a row has, and when their files were changed."""
    images = [[channel, str(plane), row.digests.get(channel, "")] for channel, plane in row.images.items()]
    lights = [[channel, str(file)] for channel, file in row.illumination.items()]
    files = [*(plane.file for plane in row.images.values()), *row.illumination.values()]
    return [images, lights, stamps(files)]


def _identity(row: ImageRow, *, again: bool) -> list[str]:
    """Return what of a row's metadata its cells depend on: all of it where known objects are joined."""
    if again:
        return [f"{name}={text}" for name, text in row.metadata.items()]
    places = [row.metadata.get(f"Location_Center_{axis}", "") for axis in "XY"]
    return [row.plate, row.well, row.site, *places]


def _packed(found: Sequence[Extracted], dtype: np.dtype[Any]) -> Piece:
    rows = []
    for cells in found:
        empty = 0 if cells.masks is None else int((cells.masks == 0).all(axis=(1, 2)).sum())
        rows.append(
            {
                "columns": cells.columns,
                "n": len(cells.counts),
                "without_mask": empty,
                "rejected": dict(cells.rejected),
                "digest": cells.digest,
                "bits": cells.bits,
            }
        )
    counts = shards.encode(np.concatenate([cells.counts for cells in found]), dtype)
    masks = [cells.masks for cells in found if cells.masks is not None]
    encoded = shards.encode(np.concatenate(masks)) if masks else None
    head = {"rows": rows, "counts": _told(counts), "masks": None if encoded is None else _told(encoded)}
    return Piece(head, counts.entries + (() if encoded is None else encoded.entries))


def _told(batch: shards.Encoded) -> dict[str, Any]:
    return {"n": len(batch), "item": batch.item, "dtype": batch.dtype.str, "low": batch.low, "high": batch.high}


def _unpacked(head: Mapping[str, Any], entries: tuple[bytes, ...]) -> shards.Encoded:
    empty = shards.Encoded((), tuple(head["item"]), np.dtype(head["dtype"]), head["low"], head["high"])
    return replace(empty, entries=entries)
