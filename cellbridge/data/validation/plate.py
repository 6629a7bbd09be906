"""A plate or data set: what its tables say, then its images, each by itself and beside the others."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cellbridge.data.annotation import annotate, require_control
from cellbridge.data.catalogue import listed_rows, require_one_condition, require_unique
from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.faults import Fault, listed
from cellbridge.data.readers.platemap import read_platemaps
from cellbridge.data.readers.rows import ImageRow, natural
from cellbridge.data.selection import EVERYTHING, Selection
from cellbridge.data.survey import stored_bits, unused_bits
from cellbridge.data.tally import Tally
from cellbridge.data.validation.forms import check_forms
from cellbridge.data.validation.looks import COPY_AGAIN, Looking, Seen
from cellbridge.data.validation.problems import Findings
from cellbridge.errors import ManifestError

FIELDS_AT_ONCE, CROPS_AT_ONCE = 4, 64
_LEAST_BITS = 8
Shared = Callable[[Looking, int], Iterator[tuple[int, list[Seen]]]]
"""Does a job for so many blocks, in several processes, and yields each number and what came out, as they are finished."""


@dataclass(frozen=True)
class Plate:
    """A data set to be validated.

    Parameters
    ----------
    file : its manifest.
    all_cells : whether its intensity maps rest on all cells, so that plates need no control.
    max_saturated : share of pixels at the largest count from which a channel is saturated.
    selection : the plates and wells that are looked at.
    """

    manifest: Manifest
    root: Path
    file: Path
    deep: bool
    all_cells: bool
    max_saturated: float
    selection: Selection = EVERYTHING


def check_plate(plate: Plate, findings: Findings, *, share: Shared) -> None:
    """Note everything that is wrong with a data set; memory grows by some 300 bytes an image, deep by 700, beside its row.

    Parameters
    ----------
    share : how the work is shared among processes.
    """
    check_forms(plate.manifest, plate.root, findings)
    rows = check_tables(plate, findings)
    each = FIELDS_AT_ONCE if plate.manifest.holds_fields else CROPS_AT_ONCE
    looking = Looking(rows, plate.manifest, each, plate.deep)
    blocks = dict(share(looking, -(-len(rows) // each)))
    check_images(rows, [seen for number in sorted(blocks) for seen in blocks[number]], plate, findings)


def check_tables(plate: Plate, findings: Findings) -> list[ImageRow]:
    """Note what is wrong with the tables, and return the rows whose images can be looked at."""
    manifest, rows, others = plate.manifest, [], []
    with listed() as faults:
        with _noted(findings, plate.file, kind="table"):
            listing = listed_rows(manifest, plate.root, plate.selection)
            rows, others = listing.rows, listing.others
        if rows:
            described = rows
            with _noted(
                findings, plate.file, kind="condition", unless=_something_is_not_joined(rows, faults, manifest)
            ):
                described, control = annotate([row for row in rows if not row.lacking], manifest, others=others)
                require_one_condition(described, manifest, control=control)
            require_unique(rows, manifest)
            if not plate.all_cells:
                known = all("Metadata_pert_type" in row.metadata for row in described)
                unknown = {row.plate for row in rows if row.lacking}
                of_known = [row for row in described if known and row.plate not in unknown]
                require_control(of_known, manifest, plate.selection)
            _remark_blank_controls(described, plate, findings, of=len({(row.plate, row.well) for row in rows}))
    findings.add_faults(faults, default=plate.file)
    _check_sites(rows, manifest, findings)
    _check_files(rows, findings)
    _check_wells(rows, plate, findings)
    return sorted(rows, key=lambda row: (row.plate, row.well, natural(row.site)))


@contextmanager
def _noted(findings: Findings, file: Path, *, kind: str, unless: bool = False) -> Iterator[None]:
    """Note an error that concerns the whole of a step, unless it follows from another that is noted, and go on after it."""
    try:
        yield
    except ManifestError as error:
        if not unless:
            findings.add_text(kind, str(error), default=file)


def _something_is_not_joined(rows: Sequence[ImageRow], faults: Sequence[Fault], manifest: Manifest) -> bool:
    """Say whether a plate map or metadata table is at fault and reached no row, so that its columns are missed."""
    at_fault = any(fault.kind in ("platemap", "metadata_table") for fault in faults)
    return at_fault and max(len(row.joined) for row in rows) < bool(manifest.platemaps) + len(manifest.metadata_tables)


def _remark_blank_controls(rows: Sequence[ImageRow], plate: Plate, findings: Findings, *, of: int) -> None:
    """Remark the wells that are control for no other reason than an empty compound."""
    wells = Tally()
    for name, well in dict.fromkeys((row.plate, row.well) for row in rows if row.blank_control):
        wells.add(f"plate {name} well {well}")
    if wells.count:
        found = f"{wells.count} of {of} wells are control by an empty compound alone ({wells.names})"
        remedy = (
            "Where an empty compound is the vehicle nothing needs to be done, and `control: Metadata_Compound=` in the manifest says so; "
            "else fill it in, or give another `control`."
        )
        findings.add("blank_control", found, remedy, file=plate.file)


def _check_sites(rows: Sequence[ImageRow], manifest: Manifest, findings: Findings) -> None:
    """Note wells without a site that more than half of the wells of their plate have."""
    if not manifest.holds_fields:
        return
    wells: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    first: dict[tuple[str, str], ImageRow] = {}
    for row in rows:
        wells[row.plate][row.well].add(row.site)
        first.setdefault((row.plate, row.well), row)
    for plate, sites in wells.items():
        having = Counter(site for some in sites.values() for site in some)
        usual = {site for site, count in having.items() if 2 * count > len(sites)}
        for well, some in sorted(sites.items()):
            for site in sorted(usual - some, key=natural):
                found = f"plate {plate} well {well} has no site {site}, which {having[site]} of {len(sites)} wells have"
                file = first[plate, well].where.partition(" row ")[0]
                findings.add(
                    "missing_site", found, "Copy its images, add or mend its rows, or leave the well out.", file=file
                )


def _check_files(rows: Sequence[ImageRow], findings: Findings) -> None:
    """Note files, pages and parts that are listed for two channels or fields."""
    first: dict[str, tuple[ImageRow, str]] = {}
    fields: dict[tuple[str, ...], ImageRow] = {}
    for row in rows:
        place = (
            row.plate,
            row.well,
            row.site,
            row.metadata.get("Metadata_Cell", str(id(row)) if "" in row.images else ""),
        )
        if fields.setdefault(place, row) is not row and not row.metadata.get("Metadata_Origin"):
            continue  # told of as a row that stands twice
        for key, plane in row.images.items():
            other, channel = first.setdefault(str(plane), (row, key))
            if other is not row or channel != key:
                found = f"{plane} is listed already, for {_name(other, channel)} in {other.where}"
                _add(findings, "duplicate", found, "Correct one of the two rows.", row, key)


def _check_wells(rows: Sequence[ImageRow], plate: Plate, findings: Findings) -> None:
    """Remark the wells of a plate map that hold something and have no image, of plates that have any."""
    try:
        with listed():
            folders = [plate.manifest.locate(name, plate.root, where="platemaps") for name in plate.manifest.platemaps]
            maps = read_platemaps(folders, plate_format=plate.manifest.plate_format, root=plate.root)
    except ManifestError:  # told of where the rows are read
        return
    imaged: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        imaged[row.plate].add(row.well)
    for name, wells in sorted(imaged.items()):
        mapped = set(maps[name].wells) if name in maps else set()
        for well in sorted(well for well in mapped - wells if plate.selection.takes(name, well)):
            found = f"plate {name} well {well} is in the plate map and has no image"
            findings.add("empty_well", found, "Copy its images, or leave it: nothing is made of it.", file=plate.file)


def check_images(rows: Sequence[ImageRow], seen: Sequence[Seen], plate: Plate, findings: Findings) -> None:
    """Note what is wrong with the images, each by itself and beside the others."""
    lights: set[str] = set()
    for problem in (problem for one in seen for problem in one.problems):
        if problem.kind != "illumination" or problem.found not in lights:  # one function lights a whole plate
            findings.problems.append(problem)
        lights |= {problem.found} if problem.kind == "illumination" else set()
    together = 0
    for one in seen:
        for pixels in one.pixels.values():
            together |= pixels.bits
    _check_alike(rows, seen, findings, fields=plate.manifest.holds_fields)
    _check_saturation(rows, seen, unused_bits([together]), plate, findings)
    _check_repeats(rows, seen, findings)
    if plate.deep and (shifted := stored_bits([together], full_scale=plate.manifest.full_scale)):
        findings.add("stored_shifted", str(shifted["words"]), "Nothing needs to be done.", file=plate.file)
    n_bytes = sum({str(rows[s.number].images[s.key].file): s.header.n_bytes for s in seen if s.header}.values())
    unit = "fields" if plate.manifest.holds_fields else "crops"
    read = sum(bool(s.pixels) for s in seen)
    findings.looked_at |= {unit: len(rows), "images": len(seen), "images_read_whole": read, "bytes": n_bytes}


def _check_alike(rows: Sequence[ImageRow], seen: Sequence[Seen], findings: Findings, *, fields: bool) -> None:
    """Note fields whose shape is not that of most of their plate's, and images whose type is not that of most of the channel's."""
    checks = (("shape", "shape"), ("dtype", "bit_depth")) if fields else (("dtype", "bit_depth"),)
    for what, kind in checks:
        groups: dict[tuple[str, str], list[Seen]] = defaultdict(list)
        wrong = {(p.number, p.key) for p in seen if any(problem.kind == kind for problem in p.problems)}
        for one in seen:
            if one.header is not None and (one.number, one.key) not in wrong:
                groups[rows[one.number].plate, one.key if what == "dtype" else ""].append(one)
        for (name, _), group in groups.items():
            values = [getattr(one.header, what) for one in group]
            usual, count = Counter(values).most_common(1)[0]
            for one, value in zip(group, values, strict=True):
                if value != usual:
                    row = rows[one.number]
                    found = f"{row.images[one.key]}: {what} {value}, {count} of {len(group)} images of plate {name} have {usual}"
                    _add(findings, kind, found, "Copy or export it again.", row, one.key)


def _check_saturation(
    rows: Sequence[ImageRow], seen: Sequence[Seen], unused: int, plate: Plate, findings: Findings
) -> None:
    full = plate.manifest.full_scale >> unused << unused
    for one in seen:
        for channel, pixels in one.pixels.items():
            if (
                pixels.low == pixels.high
                or pixels.at_high <= plate.max_saturated
                or not _ends(pixels.high, full, unused)
            ):
                continue
            row = rows[one.number]
            found = f"{row.images[one.key]}: {pixels.at_high:.1%} of the pixels have the count {pixels.high}, the camera's largest"
            remedy = "Image it again with less light or gain, leave the field out, or raise max_saturated."
            _add(findings, "saturated", found, remedy, row, channel)


def _ends(high: int, full: int, unused: int) -> bool:
    """Say whether a count is the last that the full scale, or a camera of 8, 10, 12, 14 or 16 bits, can give."""
    steps = (high >> unused) + 1
    return high >= full or (steps & (steps - 1) == 0 and steps.bit_length() - 1 in range(_LEAST_BITS, 17, 2))


def _check_repeats(rows: Sequence[ImageRow], seen: Sequence[Seen], findings: Findings) -> None:
    """Note images whose pixels have been there before, in another file."""
    first: dict[str, Seen] = {}
    for one in seen:
        other = first.setdefault(one.digest, one) if one.digest else one
        row, plane = rows[one.number], rows[one.number].images[one.key]
        before = rows[other.number].images[other.key]
        if other is not one and str(plane) != str(before):
            found = f"{plane} holds the pixels of {before} ({_name(rows[other.number], other.key)})"
            _add(findings, "duplicate", found, f"Find out which of the two is right. {COPY_AGAIN}", row, one.key)


def _add(findings: Findings, kind: str, found: str, remedy: str, row: ImageRow, channel: str) -> None:
    file, _, line = row.where.partition(" row ")
    findings.add(kind, found, remedy, file=file, row=int(line) if line.isdecimal() else None, at=_name(row, channel))


def _name(row: ImageRow, channel: str) -> str:
    return f"{row.place} {channel}".strip()
