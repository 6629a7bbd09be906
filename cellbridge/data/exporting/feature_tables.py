"""Features that others computed, whatever file they stand in: CellProfiler's CSV, parquet, an evaluation's cells, or an array of embeddings.

Everything called `Metadata_…` is text and stays as it is written; every other column that holds numbers only is a feature.
"""

import csv
import gzip
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cellbridge.data.exporting.cells import Cells
from cellbridge.data.readers.tables import read_table
from cellbridge.errors import ManifestError, in_one_line

_BOOKKEEPING = re.compile(r"(ImageNumber|ObjectNumber|TableNumber|.*Number_Object_Number|Unnamed: \d+|)")
_TABLES = (".csv", ".tsv", ".txt", ".parquet")
_MISSING = ("", "nan", "NaN", "NAN", "NA", "null", "None")
"""What a number that is missing is written as; in `Metadata_…` these are texts like any other."""


@dataclass(frozen=True)
class Features:
    """Numbers of cells or of wells: `values` has one column per feature, `metadata` the texts of the same rows."""

    metadata: pd.DataFrame
    values: pd.DataFrame
    left_out: tuple[str, ...] = ()
    """Columns that are neither metadata nor numbers."""


def read_features(file: Path, *, cells: Cells, rows_of: Path | None = None) -> Features:
    """Read a table, or an array (cell, feature) whose rows are the cells' or those of the table `rows_of`.

    Raises
    ------
    ManifestError : the file is missing or damaged, holds no feature or an infinite one, or an array has another number of rows.
    """
    if file.suffix.lower() == ".npy":
        features = _of_array(file, cells=cells, rows_of=rows_of)
    elif rows_of is not None:
        raise ManifestError(f"{file}: is a table with rows of its own. Leave rows_of to arrays (.npy).")
    else:
        features = _of_table(file)
    if not features.values.shape[1]:
        raise ManifestError(f"{file}: holds no column of numbers beside Metadata_…. Give a table of features.")
    infinite = np.isinf(features.values.to_numpy()).any(axis=0)
    if infinite.any():
        raise ManifestError(
            f'{file}: feature "{features.values.columns[infinite][0]}" is infinite somewhere. Leave it out, or compute it again.'
        )
    return features


def _of_array(file: Path, *, cells: Cells, rows_of: Path | None) -> Features:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ManifestError(
            f"{file}: is no array of numbers ({in_one_line(error)}). Save it with numpy.save."
        ) from None
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ManifestError(f"{file}: {array.dtype} of shape {array.shape}, expected numbers of shape (cell, feature).")
    metadata = cells.obs.filter(regex="^Metadata_") if rows_of is None else _texts(rows_of)
    if len(array) != len(metadata):
        whose = cells.info.path if rows_of is None else rows_of
        raise ManifestError(
            f"{file}: {len(array)} rows, but {whose} {'and its translations have' if len(cells.stores) > 1 and rows_of is None else 'has'} "
            f"{len(metadata)}. Say by rows_of=TABLE whose they are."
        )
    names = [f"Embedding_{number:04d}" for number in range(array.shape[1])]
    values = pd.DataFrame(np.asarray(array, dtype=np.result_type(array.dtype, np.float32)), columns=names)
    return Features(metadata.reset_index(drop=True), values)


def _of_table(file: Path) -> Features:
    frame = _numbers_and_texts(file)
    text = [name for name in frame.columns if name.startswith("Metadata_")]
    rest = [name for name in frame.columns if name not in text and not _BOOKKEEPING.fullmatch(name)]
    numbers = [name for name in rest if frame[name].dtype.kind in "fiub"]
    values = frame[numbers].astype(np.float64)
    return Features(frame[text], values, left_out=tuple(name for name in rest if name not in numbers))


def _texts(file: Path) -> pd.DataFrame:
    table = read_table(file)
    frame = pd.DataFrame(list(table.rows), columns=list(table.columns), dtype=object)
    return frame.rename(columns=_plain_name).filter(regex="^Metadata_")


def _numbers_and_texts(file: Path) -> pd.DataFrame:
    """Return a table with Metadata_… as text. Unlike `read_table` it is made for thousands of columns of numbers."""
    plain = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    if plain.suffix.lower() not in _TABLES:
        raise ManifestError(f"{file}: is no table that is known here. Give .csv, .csv.gz, .tsv, .parquet or .npy.")
    try:
        frame = pd.read_parquet(file) if plain.suffix.lower() == ".parquet" else _read_csv(file)
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise ManifestError(f"{file}: no whole table ({in_one_line(error)}). Copy it again.") from None
    frame = frame.reset_index() if any(name is not None for name in frame.index.names) else frame
    frame.columns = pd.Index([_plain_name(str(name)) for name in frame.columns])
    _require_once(list(frame.columns), file)
    if frame.empty:
        raise ManifestError(f"{file}: has no row. Nothing can be read from it.")
    for name in frame.columns[frame.columns.str.startswith("Metadata_")]:
        frame[name] = [_text(value) for value in frame[name]]
    return frame


def _read_csv(file: Path) -> pd.DataFrame:
    with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rt", encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
    separator = max("\t,;", key=header.count)
    names = next(csv.reader([header], delimiter=separator), [])
    _require_once([_plain_name(name) for name in names], file)  # pandas would rename the second
    texts = {name for name in names if _plain_name(name).startswith("Metadata_")}
    frame: pd.DataFrame = pd.read_csv(
        file,
        sep=separator,
        encoding="utf-8-sig",
        dtype=dict.fromkeys(texts, str),
        keep_default_na=False,
        na_values={name: list(_MISSING) for name in names if name not in texts},
        low_memory=False,
    )
    return frame


def _require_once(names: list[str], file: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ManifestError(f'{file}: column "{name}" stands twice. Rename or remove one of them.')
        seen.add(name)


def _plain_name(name: str) -> str:
    """Return a column's name without what CellProfiler puts in front of metadata in its tables of images."""
    return name.removeprefix("Image_") if name.startswith("Image_Metadata_") else name


def _text(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
