"""How a data set's tables are written down: what cellbridge reads all the same, and other programs stumble over."""

import re
from collections.abc import Iterator
from pathlib import Path

from cellbridge.data.manifest import Manifest
from cellbridge.data.readers.platemap import BARCODE_TABLE
from cellbridge.data.readers.tables import read_table, table_bytes, table_name
from cellbridge.data.validation.problems import Findings
from cellbridge.errors import ManifestError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MICROMOLAR = re.compile(r"[0-9.]\s*[µμ][Mm]\b|^[µμ][Mm]$")
_SAVE = "Nothing needs to be done for cellbridge; for other programs save the table as CSV in UTF-8"


def check_forms(manifest: Manifest, root: Path, findings: Findings) -> None:
    """Note byte-order marks, Windows line ends, `;` between columns and µM in cells, table by table."""
    files = list(dict.fromkeys(table_files(manifest, root)))
    findings.looked_at["tables"] = len(files)
    for path in files:
        file = table_name(path, root)
        try:
            data = b"" if path.suffix.lower() == ".parquet" else table_bytes(path)
        except ManifestError:  # told of where the table is read
            continue
        if data.startswith(_BYTE_ORDER_MARK):
            found = "the table begins with a byte-order mark (U+FEFF), as Excel writes it"
            findings.add("byte_order_mark", found, f"{_SAVE} without it.", file=file, row=1)
        if ended := data.count(b"\r\n"):
            first = data[: data.index(b"\r\n")].count(b"\n") + 1
            found = f"{ended} of {data.count(bytes([10]))} lines end in CR LF"
            findings.add("crlf", found, f"{_SAVE} with LF ends.", file=file, row=first)
        header = data.split(b"\n", 1)[0]
        if header.count(b";") > max(header.count(b","), header.count(b"\t")):
            findings.add("semicolon", "; stands between the columns", f"{_SAVE} with commas.", file=file, row=1)
        if b"\xc2\xb5" in data or b"\xce\xbc" in data:
            _check_cells(path, root, findings)


def table_files(manifest: Manifest, root: Path) -> Iterator[Path]:
    """Yield every table that a manifest leads to and that is there."""
    names = [*manifest.tables, *(section.table for section in manifest.metadata_tables)]
    names += [] if manifest.objects is None else [manifest.objects]
    for name in (*names, *manifest.platemaps):
        try:
            place = manifest.locate(name, root, where="tables")
        except ManifestError:  # told of where the table is read
            continue
        if place.is_dir():
            maps = sorted(file for file in (place / "platemap").glob("*") if file.suffix in (".txt", ".tsv", ".csv"))
            yield from (file for file in (place / BARCODE_TABLE, *maps) if file.is_file())
        elif place.is_file():
            yield place


def _check_cells(path: Path, root: Path, findings: Findings) -> None:
    """Note each cell and column's name with a concentration in µM: the sign has two code points, and none in ASCII."""
    try:
        table = read_table(path, root=root)
    except ManifestError:  # told of where it is read
        return
    remedy = "Nothing needs to be done for cellbridge; for other programs write uM, or the unit in the column's name."
    for line, row in zip(table.lines, table.rows, strict=True):
        for column, cell in row.items():
            if _MICROMOLAR.search(cell):
                findings.add(
                    "micro_sign",
                    f'"{cell}" has its unit with a micro sign',
                    remedy,
                    file=table.name,
                    row=line,
                    at=column,
                )
