"""Tables that say more of plates, wells and compounds."""

from pathlib import Path
from typing import Any

import pytest

from cellbridge.data.annotation import aliases, annotate, is_control
from cellbridge.data.manifest import Manifest
from cellbridge.data.planes import Plane
from cellbridge.data.readers.metadata_tables import join_metadata_tables
from cellbridge.data.readers.rows import ImageRow
from cellbridge.data.readers.tables import read_table
from cellbridge.errors import ManifestError

PLACE = {"Metadata_Plate": "plate", "Metadata_Well": "well"}


def described(*tables: dict[str, Any], **keys: Any) -> Manifest:
    given = {
        "name": "p",
        "licence": "x",
        "citation": "x",
        "kind": "load_data",
        "tables": ["t.csv"],
        "channels": ["DNA"],
    }
    return Manifest.model_validate({**given, "nucleus_channel": "DNA", "metadata_tables": tables, **keys})


def row(well: str, **metadata: str) -> ImageRow:
    named = {f"Metadata_{name}": text for name, text in metadata.items()}
    return ImageRow(
        {"Metadata_Plate": "p", "Metadata_Well": well, "Metadata_Site": "1", **named},
        {"DNA": Plane(Path("x"))},
        "t row 2",
    )


def test_columns_are_added_by_place_however_the_well_is_written(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("plate,well,compound,Image_Metadata_dose\np,a1,x,1\nq,A01,y,2\n")
    (found,) = join_metadata_tables([row("A01")], described({"table": "w.csv", "keys": PLACE}), tmp_path)
    assert (found.metadata["Metadata_compound"], found.metadata["Metadata_dose"]) == ("x", "1")


def test_a_later_table_uses_what_an_earlier_one_added_and_empty_keys_need_no_entry(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("well,id\nA01,1\nA02,\n")
    (tmp_path / "c.csv").write_text("id,name,moa\n1,taxol,tubulin\n")
    first = {"table": "w.csv", "keys": {"Metadata_Well": "well"}}
    second = {"table": "c.csv", "keys": {"Metadata_id": "id"}, "columns": ["moa"]}
    rows = join_metadata_tables([row("A01"), row("A02")], described(first, second), tmp_path)
    assert [found.metadata["Metadata_moa"] for found in rows] == ["tubulin", ""]
    assert "Metadata_name" not in rows[0].metadata


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("well,x\nA02,1\n", {}, "t row 2 Metadata_Well: w.csv has no entry for A01 (well)"),
        (
            "well,x\nA01,1\na1,2\n",
            {},
            'w.csv row 3 x: A01 stands in w.csv row 2 already, with "1" and not "2"',
        ),
        ("well,kind\nA01,b\n", {}, 't row 2 Metadata_kind: Metadata_kind is "a", w.csv row 2 says "b"'),
        ("place,x\nA01,1\n", {}, 'no column "well"'),
        ("well,x\nQ25,1\n", {}, "w.csv row 2 well: well"),
        ("well,x\nA01,1\n", {"keys": {"Metadata_where": "well"}}, 'joined on "Metadata_where", which no row has'),
        ("well,x\nA01,1\n", {"columns": ["y"]}, 'no column "y"'),
        ("well,x\nA01,1\n", {"table": "../w.csv"}, "outside the root"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(text: str, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text(text)
    section = {"table": "w.csv", "keys": {"Metadata_Well": "well"}, **keys}
    with pytest.raises(ManifestError) as caught:
        join_metadata_tables([row("A01", kind="a")], described(section), tmp_path)
    assert message in str(caught.value)


def test_without_an_entry_the_columns_are_empty_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("well,x\nA02,1\n")
    section = {"table": "w.csv", "keys": {"Metadata_Well": "well"}, "complete": False}
    (found,) = join_metadata_tables([row("A01")], described(section), tmp_path)
    assert found.metadata["Metadata_x"] == ""


def test_a_parquet_table_reads_as_the_same_texts(tmp_path: Path) -> None:
    import pandas as pd

    values = {
        "name": ["NA", "None", None],
        "site": [1, 2, 3],
        "dose": [0.5, 2.0, float("nan")],
        "plate": ["0001053597806"] * 3,
    }
    pd.DataFrame(values).to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert [list(found.values())[:3] for found in table.rows] == [["NA", "1", "0.5"], ["None", "2", "2"], ["", "3", ""]]
    assert {found["plate"] for found in table.rows} == {"0001053597806"}
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-9])
    with pytest.raises(ManifestError, match=r"t\.parquet: no whole parquet file"):
        read_table(tmp_path / "t.parquet")


def test_jump_tables_name_plates_controls_and_genes(real_data: Path) -> None:
    """JUMP's own tables: a compound control by its kind, an ORF by its gene, and both by name."""
    identifier = {"Metadata_JCP2022": "Metadata_JCP2022"}
    tables = [
        {"table": "plate.csv.gz", "keys": {"Metadata_Plate": "Metadata_Plate", "Metadata_Source": "Metadata_Source"}},
        {"table": "orf.csv.gz", "keys": identifier, "columns": ["Metadata_Symbol"], "complete": False},
        {"table": "perturbation_control.csv", "keys": identifier, "complete": False},
    ]
    names = {"A01": "JCP2022_033924", "A02": "JCP2022_037716", "A03": "JCP2022_900002"}
    rows = [
        ImageRow({**row(well, JCP2022=name, Source="source_4").metadata, "Metadata_Plate": "BR00121438"}, {}, "t")
        for well, name in names.items()
    ]
    manifest = described(*tables, control_name="DMSO")
    found, control = annotate(join_metadata_tables(rows, manifest, real_data / "tables/jump"), manifest)
    assert control == "DMSO"
    assert [is_control(one) for one in found] == [True, False, False]
    assert {one.metadata["Metadata_PlateType"] for one in found} == {"TARGET2"}
    assert found[1].metadata["Metadata_pert_type"] == "poscon"
    assert found[2].metadata["Metadata_Symbol"] == "NAT1"
    assert aliases(found) == {"AMG900": "JCP2022_037716", "JCP2022_033924": "DMSO"}
