"""The cells of a store, cut again out of other images of the same fields: how counterfactual truth enters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellbridge.data import crops
from cellbridge.data.extraction import Extracted, Geometry, corrected
from cellbridge.data.illumination import FlatField
from cellbridge.data.manifest import Manifest
from cellbridge.data.objects import KnownObjects
from cellbridge.data.origin import given_light
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.store import Store
from cellbridge.data.survey import Array, Flats, read_field
from cellbridge.errors import ImageError, ManifestError, StoreError

CENTRE = ("Location_Center_Y", "Location_Center_X")


@dataclass(frozen=True)
class KnownCells:
    """Cells whose places are known.

    Parameters
    ----------
    fields : plate, well, site → positions in the arrays below.
    ids, splits : Metadata_Cell and Metadata_Split of each cell.
    centres : (cell, 2), row and column in pixels of the field.
    masks : reads the masks of some cells; gives None where there are none.
    flats : the light that the cells' own images were corrected for.
    objects : known objects to be joined, nearest within radius_px; None joins nothing.
    """

    fields: Mapping[tuple[str, str, str], list[int]]
    ids: Array
    splits: Array
    centres: Array
    masks: Callable[[Array], Array | None]
    flats: Flats
    objects: KnownObjects | None
    radius_px: float

    @classmethod
    def of_store(cls, store: Store, *, objects: KnownObjects | None, radius_px: float) -> "KnownCells":
        """Take the cells of a store that was prepared from fields; raise StoreError where it was not."""
        if "illumination" not in store.info.attributes or not set(CENTRE) <= set(store.obs.columns):
            raise StoreError(
                f"{store.info.path}: was not prepared from fields, so its cells have no place to be cut from."
            )
        fields: dict[tuple[str, str, str], list[int]] = {}
        place = (store.obs[name] for name in ("Metadata_Plate", "Metadata_Well", "Metadata_Site"))
        for row, key in enumerate(zip(*place, strict=True)):
            fields.setdefault(key, []).append(row)
        flats = {
            plate: {channel: FlatField(tuple(values)) for channel, values in channels.items()}
            for plate, channels in store.info.attributes["illumination"].items()
        }
        centres = store.obs[list(CENTRE)].to_numpy(np.float64)
        ids, splits = (store.obs[name].to_numpy(object) for name in ("Metadata_Cell", "Metadata_Split"))
        return cls(fields, ids, splits, centres, store.masks, flats, objects, radius_px)


def require_known(rows: Sequence[ImageRow], store: Store) -> None:
    """Refuse rows that the store cannot be cut from again, before any image is read.

    Raises
    ------
    ManifestError : a field in which no cell is known, or another given illumination function than that of the store's images.
    """
    place = (store.obs[name] for name in ("Metadata_Plate", "Metadata_Well", "Metadata_Site"))
    known = set(zip(*place, strict=True))
    given = store.info.attributes.get("illumination_given", {})
    light = given_light(rows)
    for row in rows:
        if (row.plate, row.well, row.site) not in known:
            raise ManifestError(
                f"{row.where}: {row.place} has no cell in the store given by crops_from. "
                "Remove the row, or prepare the store from the fields that these images show."
            )
        if light.get(row.plate, {}) != given.get(row.plate, {}):
            raise ManifestError(
                f"{row.where}: the illumination functions that the tables name for plate {row.plate} are not those of the store given "
                "by crops_from. Name the same files, or none where it was made with none."
            )


def same_cells(row: ImageRow, manifest: Manifest, geometry: Geometry, *, known: KnownCells) -> Extracted:
    """Cut the known cells of a row's field, with the same light, and join the objects table.

    A cell without an object in reach is rejected as `no_object`, one whose object says Truth_Lost as `lost`.

    Raises
    ------
    ImageError : an image is missing, damaged or of a wrong shape.
    """
    image = read_field(row, manifest.stains, full_scale=manifest.full_scale)
    cells = np.asarray(known.fields[row.plate, row.well, row.site])
    _require_same_field(image, row, manifest, geometry, centres=known.centres[cells])
    flats = known.flats.get(row.plate, {})
    image = corrected(image, row, manifest.stains, flats=flats, full_scale=manifest.full_scale)
    kept, joined, rejected = _join(row, known.centres[cells], known)
    cells = cells[kept]
    columns: dict[str, list[Any]] = {
        "Metadata_Cell": [_cell_name(row, name) for name in known.ids[cells]],
        "Metadata_SourceCell": known.ids[cells].tolist(),
        "Metadata_Split": known.splits[cells].tolist(),
        **{name: known.centres[cells, index].tolist() for index, name in enumerate(CENTRE)},
        **joined,
    }
    counts = crops.cut(image, known.centres[cells], crop_px=geometry.crop_px, size_px=geometry.size_px)
    return Extracted(columns, counts, known.masks(cells), rejected)


def _require_same_field(image: Array, row: ImageRow, manifest: Manifest, geometry: Geometry, *, centres: Array) -> None:
    ends = np.floor(centres) + 1
    if geometry.choice.border == "reject":
        ends = np.array([crops.corner(centre, geometry.crop_px) for centre in centres]) + geometry.crop_px
    if (ends > image.shape[1:]).any():
        raise ImageError(
            f"{row.images[manifest.stains[0]]}: shape {image.shape[1:]}, smaller than the field that the store was cut from. "
            "Copy or export it again."
        )


def _cell_name(row: ImageRow, source: str) -> str:
    """Return the source cell's id with condition and origin."""
    compound, dose = row.metadata["Metadata_Compound"], row.metadata["Metadata_Concentration"]
    condition = f"{compound}@{dose}" if dose else compound
    return "/".join(part for part in (source, condition, row.metadata.get("Metadata_Origin", "")) if part)


def _join(row: ImageRow, centres: Array, known: KnownCells) -> tuple[Array, dict[str, list[Any]], dict[str, int]]:
    """Return which cells are kept, their joined columns, and how many are not kept, by reason."""
    objects = known.objects
    if objects is None:
        return np.arange(len(centres)), {}, {}
    matched = objects.match(row.metadata, centres, radius_px=known.radius_px)
    lost = np.zeros(len(centres), bool)
    if "Truth_Lost" in objects.columns:
        lost = (matched >= 0) & (objects.values("Truth_Lost", matched) == 1.0)
    kept = np.flatnonzero((matched >= 0) & ~lost)
    joined = {name: objects.values(name, matched[kept]).tolist() for name in objects.columns}
    rejected = {"no_object": int((matched < 0).sum()), "lost": int(lost.sum())}
    return kept, joined, {reason: count for reason, count in rejected.items() if count}
