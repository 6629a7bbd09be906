"""What a table says of images that cellbridge did not make: condition, plate, well and site of each, in the community's columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cellbridge.data.readers.tables import Table, read_table
from cellbridge.data.store import condition_of
from cellbridge.errors import ImageError, StoreError, did_you_mean

TABLE_NAME = "metadata.csv"
_PATHS = ("path", "file_name", "file")
_CONDITIONS = ("condition", "label", "Metadata_Condition")


def read_descriptions(file: Path, folder: Path) -> dict[Path, dict[str, str]]:
    """Return the row of each image that a table lists, by the image's path.

    Raises
    ------
    ImageError : no column of paths, a path that leaves the folder, or an image that is not there.
    """
    table = read_table(file)
    column = next((name for name in _PATHS if name in table.columns), None)
    if column is None:
        raise ImageError(f'{file}: no column "path" or "file_name".{did_you_mean("path", table.columns)}')
    rows = {}
    for index, row in enumerate(table.rows):
        image = folder / row[column]
        if folder.resolve() not in image.resolve().parents or not image.is_file():
            raise ImageError(f'{table.where(index)}: "{row[column]}" is no file below {folder}. Correct the path.')
        rows[image] = dict(row)
    return rows


def table_rows(file: Path, *, expected: int) -> list[dict[str, str]]:
    """Return the rows of a .csv or .parquet table that lies beside an array of images, one per image.

    Raises
    ------
    ImageError : another number of rows.
    """
    if file.suffix == ".parquet":
        import pandas as pd

        frame = pd.read_parquet(file)
        rows = [{str(key): _text(value) for key, value in row.items()} for row in frame.to_dict("records")]
    else:
        table: Table = read_table(file)
        rows = [dict(row) for row in table.rows]
    if len(rows) != expected:
        raise ImageError(f"{file}: {len(rows)} rows beside {expected} images, expected one per image, in their order.")
    return rows


def described(
    conditions: Sequence[str], rows: Sequence[Mapping[str, str] | None], *, control: str = "DMSO"
) -> dict[str, tuple[str, ...]]:
    """Return conditions, plates, wells and sites of images.

    Parameters
    ----------
    conditions : of each, by its folder or label; "" where neither says it.
    rows : of a table, or None where there is none; what it says of the condition goes before the folder.
    control : the compound whose dose is left out of its condition's name.
    """
    named = [_condition(row, control=control) or folder for folder, row in zip(conditions, rows, strict=True)]
    places = {
        f"{key.lower()}s": tuple("" if row is None else row.get(f"Metadata_{key}", "") for row in rows)
        for key in ("Plate", "Well", "Site")
    }
    return {"conditions": tuple(named), **places}


def _condition(row: Mapping[str, str] | None, *, control: str) -> str:
    if row is None:
        return ""
    if row.get("Metadata_Compound"):
        try:
            return condition_of(row["Metadata_Compound"], row.get("Metadata_Concentration", ""), control=control).name
        except StoreError as error:
            raise ImageError(str(error)) from None
    return next((row[name] for name in _CONDITIONS if row.get(name)), "")


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)  # NaN, a missing value, differs from itself
