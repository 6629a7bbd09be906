"""What a store says of itself, read from its JSON alone: fast, and without zarr, torch or pandas."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellbridge import runs
from cellbridge.conditions import Condition
from cellbridge.errors import CheckpointError, StoreError

if TYPE_CHECKING:
    from cellbridge.data.intensity import IntensityMaps

FORMAT = 1
ATTRIBUTES = "cellbridge"
REMEDY = "Restore the store from a copy, or make it again."


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds, as its attributes say; nothing but JSON is read for it."""

    path: Path
    channels: tuple[str, ...]
    size_px: int
    pixel_um: float | None
    full_scale: int
    control: str
    conditions: tuple[Condition, ...]
    aliases: Mapping[str, str]
    plates: tuple[str, ...]
    n_cells: int
    intensity: Mapping[str, Any]
    intensity_reference: str
    n_by_condition: Mapping[str, int]
    attributes: Mapping[str, Any] = field(repr=False)
    """Everything under `cellbridge`, with what the writer added."""

    def intensity_maps(self) -> "IntensityMaps":
        """Return the maps between counts and [-1, 1]."""
        from cellbridge.data.intensity import IntensityMaps

        reference: Literal["control", "all"] = "all" if self.intensity_reference == "all" else "control"
        return IntensityMaps.from_dict(
            self.intensity, channels=self.channels, full_scale=self.full_scale, reference=reference
        )


def describe(path: Path) -> StoreInfo:
    """Return what a store holds without opening its arrays (JSON only: fast, and no zarr, torch or pandas).

    Every file of the store is looked up; pixels and table are verified when they are read.

    Raises
    ------
    StoreError : there is no store at `path`, or it is incomplete or of another format.
    """
    path = Path(path)
    _require_whole(path)
    return read_info(path)


def read_info(path: Path) -> StoreInfo:
    """Return what the attributes of a store say, whether or not its files are all there.

    Raises
    ------
    StoreError : it has no attributes of a store, or is of another format.
    """
    try:
        found = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"][ATTRIBUTES]
        if found["format"] != FORMAT:
            raise StoreError(f"{path}: store format {found['format']!r}, expected {FORMAT}. Prepare the store again.")
        return StoreInfo(
            path=path,
            channels=tuple(found["channels"]),
            size_px=int(found["size_px"]),
            pixel_um=found["pixel_um"],
            full_scale=int(found["full_scale"]),
            control=found["control"],
            conditions=tuple(Condition.parse(name) for name in found["conditions"]),
            aliases=dict(found.get("aliases", {})),
            plates=tuple(found["plates"]),
            n_cells=int(found["n_cells"]),
            intensity=found["intensity"],
            intensity_reference=found["intensity_reference"],
            n_by_condition=found["n_by_condition"],
            attributes=found,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}/zarr.json: is not a cellbridge store ({type(error).__name__}: {error}). Prepare the store again."
        ) from None


def _require_whole(path: Path) -> None:
    if not path.is_dir():
        raise StoreError(f"{path}: no such store. Make it with `cellbridge prepare` or `cellbridge translate`.")
    try:
        files = runs.read_manifest(path)["files"]
        for name, entry in files.items():
            file = path / name
            size = file.stat().st_size if file.is_file() else None
            # zarr takes a missing chunk for zeros, and cannot see a change in the JSON that describes its arrays.
            if size != entry["bytes"] or (name.endswith("zarr.json") and runs.file_sha256(file) != entry["sha256"]):
                state = "is missing" if size is None else "was changed"
                raise StoreError(f"{file}: {state} since the store was written. {REMEDY}")
        if "zarr.json" not in files:
            raise StoreError(f"{path}: is not a store (no zarr.json). Give the path of a store.")
    except CheckpointError as error:
        raise StoreError(f"{error} {REMEDY}") from None
