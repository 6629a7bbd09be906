"""Tables: parquet gives back every string as it was, and no CSV cell is one that a spreadsheet runs."""

import csv
import io
import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellbridge.tables import CELLS, csv_text, write_cells, write_csv, write_parquet

HOSTILE = ['=HYPERLINK("http://x","y")', "+1", "@SUM(1)", "-2+3", "\tx", "\rx", " =1+1", "0001053597806", "NA", "µM, β"]


def per_cell() -> pd.DataFrame:
    n = len(HOSTILE)
    return pd.DataFrame(
        {
            "Metadata_Target": HOSTILE,
            "Metadata_Arm": "model:ddib",
            "Metadata_Cell": [f"c{i}" for i in range(n)],
            "hit": np.arange(n) % 2 == 0,
            "error": [math.nan, *np.linspace(0, 1, n - 1)],
            "identity_rank": np.arange(n),
            "nothing": [None] * n,
        }
    )


def test_parquet_keeps_raw_strings_types_and_what_is_missing(tmp_path):
    frame = per_cell()
    assert write_cells(frame, tmp_path) == CELLS
    found = pd.read_parquet(tmp_path / CELLS)
    assert list(found["Metadata_Target"]) == HOSTILE
    np.testing.assert_array_equal(found["error"], frame["error"])
    assert found["hit"].dtype == bool
    assert pq.read_schema(tmp_path / CELLS).field("identity_rank").type == "int64"
    assert found["nothing"].isna().all()
    assert [file.name for file in tmp_path.iterdir()] == [CELLS]


def test_the_same_table_gives_the_same_bytes(tmp_path):
    write_parquet(per_cell(), tmp_path / "a.parquet")
    write_parquet(per_cell(), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_cell_that_stands_twice_in_an_arm_is_refused(tmp_path):
    frame = per_cell().iloc[[0, 1, 1]]
    with pytest.raises(ValueError, match="stand twice, such as"):
        write_cells(frame, tmp_path)
    assert not (tmp_path / CELLS).exists()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="=+-@\t\r\n \"',;a1é", max_size=6), min_size=1, max_size=5))
def test_no_cell_of_a_csv_begins_as_a_formula_whatever_the_text(texts):
    written = csv_text(["compound", *HOSTILE], [{"compound": text} for text in texts])
    for row in csv.reader(io.StringIO(written, newline="")):
        for cell in row:
            assert not cell.lstrip(" \n").startswith(("=", "+", "-", "@", "\t", "\r"))


@given(st.text(alphabet="=+-@abc,\"'\n", max_size=8))
def test_a_csv_reads_back_to_the_text_behind_at_most_one_apostrophe(text):
    (cell,) = list(csv.reader(io.StringIO(csv_text(["x"], [{"x": text}]), newline="")))[1] or [""]
    assert cell in (text, f"'{text}")


def test_numbers_stay_numbers_and_missing_ones_are_empty(tmp_path):
    write_csv(tmp_path / "x.csv", ["a", "b"], [{"a": -0.5, "b": math.nan}, {"a": 3}])
    assert (tmp_path / "x.csv").read_bytes() == b"a,b\r\n-0.5,\r\n3,\r\n"
