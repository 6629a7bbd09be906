"""Where on a plate an image lies: plate, well and site of a row, and rows of single planes gathered into fields."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from cellbridge.data.layout import parse_well, well_name
from cellbridge.data.manifest import Manifest
from cellbridge.data.planes import Plane
from cellbridge.data.readers.faults import apart, refuse
from cellbridge.data.readers.rows import ImageRow, at_column
from cellbridge.errors import ManifestError, did_you_mean

_SHOWN = 5


@dataclass(frozen=True)
class PlaneRow:
    """One plane of one field.

    Parameters
    ----------
    metadata : `Metadata_*` → text; with plate, well and site as they are written.
    channel : what the table or the file's name calls the channel.
    md5 : of the file, where the table gives it.
    names : `Metadata_*` → what the table calls the column, for messages.
    """

    metadata: dict[str, str]
    channel: str
    plane: Plane
    where: str
    md5: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


def place_metadata(
    values: Mapping[str, str], *, plate_format: int, where: str, names: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Return the metadata with the well as `A01`, and site 1 where the table has no sites.

    Parameters
    ----------
    names : `Metadata_*` → what the table calls the column, for messages.

    Raises
    ------
    ManifestError : the plate is empty, the well is none of the plate's, or the site is no name.
    """

    def at(name: str) -> str:
        return at_column(where, names.get(name, name))

    if not values.get("Metadata_Plate"):
        raise ManifestError(f"{at('Metadata_Plate')}: the plate is empty. Fill it in, or remove the row.")
    well = parse_well(values.get("Metadata_Well", ""), plate_format=plate_format, where=at("Metadata_Well"))
    site = values.get("Metadata_Site", "1")
    if not re.fullmatch(r"[\w.-]+", site):
        raise ManifestError(f'{at("Metadata_Site")}: "{site}" is no name of a site. Use a number, such as 1.')
    return {**values, "Metadata_Well": well, "Metadata_Site": site}


def well_of(row: str, column: str, *, where: str) -> str:
    """Return the well of a row (letters, or a number counted from 1) and a column counted from 1.

    Raises
    ------
    ManifestError : one of them is neither.
    """
    if (
        not column.isdecimal()
        or not (row.isdecimal() or row.isalpha())
        or (row.isdecimal() and not 1 <= int(row) <= 32)
    ):
        raise ManifestError(
            f'{where}: row "{row}" and column "{column}" are no well. Write them as B and 3, or 2 and 3.'
        )
    return well_name(int(row) - 1, int(column) - 1) if row.isdecimal() else f"{row.upper()}{column}"


def is_wanted(metadata: Mapping[str, str], manifest: Manifest) -> bool:
    """Say whether a row is kept: one of the manifest's `only` holds for it, or there is none."""
    return not manifest.only or any(metadata.get(key) == value for key, _, value in map(_query, manifest.only))


def may_be_wanted(metadata: Mapping[str, str], manifest: Manifest) -> bool:
    """Say whether a row may be kept once plate maps and metadata tables have added their columns."""
    keys = [key for key, _, _ in map(_query, manifest.only)]
    return is_wanted(metadata, manifest) or any(key not in metadata for key in keys)


def _query(text: str) -> tuple[str, str, str]:
    return text.partition("=")


def gather_fields(planes: Iterable[PlaneRow], manifest: Manifest) -> list[ImageRow]:
    """Return one row per plate, well and site, with every channel that the manifest reads.

    Channels that it leaves out need not be there. Metadata that differ between the planes of a field describe the plane, and are
    left away for all fields.

    Raises
    ------
    ManifestError : a channel is not known, stands twice in a field or is missing in some; a well is outside its plate.
    """
    fields: dict[tuple[str, str, str], dict[str, PlaneRow]] = {}
    for plane in planes:
        with apart("row"):
            placed = place_metadata(
                plane.metadata, plate_format=manifest.plate_format, where=plane.where, names=plane.names
            )
            channel = _stain(plane, manifest)
            if channel in manifest.channels_to_read:
                _add(replace(plane, metadata=placed, channel=channel), fields)
    _require_channels(fields, manifest)
    of_planes = _plane_columns(fields.values(), manifest)
    return [_field(channels, manifest, of_planes) for channels in fields.values()]


def _add(row: PlaneRow, fields: dict[tuple[str, str, str], dict[str, PlaneRow]]) -> None:
    place = (row.metadata["Metadata_Plate"], row.metadata["Metadata_Well"], row.metadata["Metadata_Site"])
    first = fields.setdefault(place, {}).setdefault(row.channel, row)
    if first is not row:
        with apart("duplicate"):
            raise ManifestError(
                f"{row.where}: channel {row.channel} of plate {place[0]} well {place[1]} site {place[2]} is listed already, in "
                f"{first.where}. Remove one of the two, or give the plates two names if they are two; of several focal planes, "
                "project or choose one."
            )


def _stain(plane: PlaneRow, manifest: Manifest) -> str:
    name = manifest.channel_names.get(plane.channel, plane.channel)
    if name not in manifest.channels:
        known = [*manifest.channels, *manifest.channel_names]
        raise ManifestError(
            f'{plane.where}: channel "{plane.channel}" is not known. Name it under channel_names, and under channels and leave_out '
            f"where it is not wanted.{did_you_mean(plane.channel, known)}"
        )
    return name


def _require_channels(fields: Mapping[tuple[str, str, str], Mapping[str, PlaneRow]], manifest: Manifest) -> None:
    """Refuse fields without one of the channels: how many, and the first few, each where its first plane stands."""
    lacking, places = [], []
    for (plate, well, site), channels in fields.items():
        absent = [name for name in manifest.channels_to_read if name not in channels]
        if absent:
            lacking.append(f"plate {plate} well {well} site {site}: no {', '.join(absent)}")
            places.append(next(iter(channels.values())).where)
    if lacking:
        more = f" | … {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        remedy = "Add the images, add or mend their rows, or leave the channel or the field out."
        summary = f"{places[0]}: {len(lacking)} of {len(fields)} fields lack a channel: {' | '.join(lacking[:_SHOWN])}{more}. {remedy}"
        lines = [f"{where}: {line}. {remedy}" for where, line in zip(places, lacking, strict=True)]
        refuse("missing_channel", lines, summary=summary)


def _plane_columns(fields: Iterable[Mapping[str, PlaneRow]], manifest: Manifest) -> set[str]:
    """Return the columns that differ within a field; those that say what was done to the well may not."""
    bound = {name for name in manifest.columns if name.startswith("Metadata_")}
    bound |= {manifest.columns[name] for name in bound} | {f"Metadata_{manifest.columns[name]}" for name in bound}
    bound |= {manifest.control.partition("=")[0]}
    differing: set[str] = set()
    for channels in fields:
        first, *others = channels.values()
        for other in others:
            names = {n for n in first.metadata.keys() | other.metadata.keys() if _differs(n, first, other)}
            wrong = sorted(n for n in names if n in bound or _says_what_was_done(n))
            with apart("row"):
                _require_none(wrong, first, other)
            differing |= names.difference(wrong)
    return differing


def _require_none(wrong: Sequence[str], first: PlaneRow, other: PlaneRow) -> None:
    if wrong:
        raise ManifestError(
            f'{other.where}: {wrong[0]} is "{other.metadata.get(wrong[0], "")}", but "{first.metadata.get(wrong[0], "")}" '
            f"in {first.where}, another channel of the same field. Correct one of the two."
        )


def _differs(name: str, first: PlaneRow, other: PlaneRow) -> bool:
    return first.metadata.get(name, "") != other.metadata.get(name, "")


def _says_what_was_done(name: str) -> bool:
    words = ("compound", "concentration", "pert_type", "pert_iname", "broad_sample", "jcp2022", "dose", "treatment")
    return any(word in name.casefold() for word in words)


def _field(channels: Mapping[str, PlaneRow], manifest: Manifest, of_planes: Sequence[str] | set[str]) -> ImageRow:
    ordered = [channels[name] for name in manifest.channels_to_read if name in channels]
    first = next(iter(channels.values()))
    return ImageRow(
        metadata={name: text for name, text in first.metadata.items() if name not in of_planes},
        images={row.channel: row.plane for row in ordered},
        where=first.where,
        digests={row.channel: row.md5.lower() for row in ordered if row.md5},
        names=first.names,
    )
