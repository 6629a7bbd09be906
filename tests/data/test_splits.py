"""Splits hold out whole plates or wells; whatever two sides share is refused by name."""

import numpy as np
import pandas as pd
import pytest

from cellbridge.data.splits import assign, by_well, check_disjoint, image_hashes
from cellbridge.errors import ConfigError, LeakError


def cells(*rows: tuple[str, str, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["Metadata_Plate", "Metadata_Well", "Metadata_Site"])
    table["Metadata_Cell"] = ["/".join(row) + f"/{i}" for i, row in enumerate(rows)]
    return table


OBS = cells(("P1", "B03", "1"), ("P1", "B04", "1"), ("P2", "B03", "1"), ("0001053597806", "C05", "2"))


def test_plates_and_wells_are_held_out_whole():
    assert assign(OBS, by="plate", test=["P1"]).tolist() == ["test", "test", "train", "train"]
    assert assign(OBS, by="plate", test=["0001053597806"]).tolist() == ["train", "train", "train", "test"]
    assert assign(OBS, by="well", test=["B03"]).tolist() == ["test", "train", "test", "train"]
    assert assign(OBS, by="well", test=["P2/B03", "C05"]).tolist() == ["train", "train", "test", "test"]
    assert assign(OBS, by="plate", test=[]).tolist() == ["train"] * 4


def test_wells_and_doses_are_understood_in_any_spelling():
    assert assign(OBS, by="well", test=["b3"]).tolist() == assign(OBS, by="well", test=["B03"]).tolist()
    assert assign(OBS, by="well", test=["P2/b3"]).tolist() == ["train", "train", "test", "train"]
    doses = OBS.assign(Metadata_Compound="taxol", Metadata_Concentration=["1", "1.0", "10", "0.1"])
    assert assign(doses, by="dose", test=["taxol@1.0"]).tolist() == ["test", "test", "train", "train"]


@pytest.mark.parametrize("by", ["plate", "well"])
def test_an_assigned_split_is_disjoint(by):
    split = assign(OBS, by=by, test=["P1"] if by == "plate" else ["B03"])
    check_disjoint(OBS[split == "train"], OBS[split == "test"], by=by)


def test_unknown_plate_or_well_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r'plate "p1" is not in the data. Did you mean "P1"'):
        assign(OBS, by="plate", test=["p1"])
    with pytest.raises(ConfigError, match=r'well "B05" is not in the data. Did you mean "[BC]0[345]"'):
        assign(OBS, by="well", test=["B05"])


@pytest.mark.parametrize(
    ("other", "by", "what"),
    [
        (("P1", "B04", "1"), "well", r'same field is in train and in test: plate "P1", well "B04", site "1"'),
        (("P1", "B04", "2"), "well", r'same well is in train and in test: plate "P1", well "B04"'),
        (("P1", "B05", "2"), "plate", r'same plate is in train and in test: plate "P1"'),
    ],
)
def test_what_both_sides_share_is_named_with_the_pair(other, by, what):
    test = cells(("P9", "A01", "1"), ("P9", "A02", "1"), other)
    with pytest.raises(LeakError, match=what) as caught:
        check_disjoint(OBS, test, by=by)
    assert f'cell "{"/".join(other)}/2" of {other[0]} {other[1]}' in str(caught.value)


def test_same_well_name_on_another_plate_and_another_well_of_a_plate_are_no_leak():
    check_disjoint(OBS, cells(("P9", "B03", "1")), by="plate")
    check_disjoint(OBS, cells(("P1", "H12", "1")), by="well")


def test_same_cell_is_named_even_where_its_well_was_relabelled():
    renamed = OBS[:1].assign(Metadata_Plate="P7", Metadata_Well="A01")
    with pytest.raises(LeakError, match='same cell is in base and in target: cell "P1/B03/1/0"'):
        check_disjoint(OBS, renamed, sides=("base", "target"))


def test_the_same_bytes_under_two_names_are_found():
    counts = np.random.default_rng(0).integers(0, 9, (4, 2, 3, 3)).astype(np.uint16)
    test = cells(("P9", "A01", "1"), ("P9", "A02", "1"))
    copied = np.stack([counts[0] + 1, counts[2]])
    check_disjoint(OBS, test, hashes=(image_hashes(counts), image_hashes(copied[:, :, ::-1])))
    with pytest.raises(LeakError, match=r'byte for byte.*cell "P2/B03/1/2" of P2 B03 and cell "P9/A02/1/1" of P9 A02'):
        check_disjoint(OBS, test, hashes=(image_hashes(counts), image_hashes(copied)))


def test_images_of_one_value_say_nothing():
    assert image_hashes(np.zeros((2, 1, 3, 3), np.uint8)) == ["", ""]
    check_disjoint(OBS, cells(("P9", "A01", "1")), hashes=(["", "", "", ""], [""]))


def annotated(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    names = ["Metadata_Plate", "Metadata_Well", "Metadata_Compound", "Metadata_Concentration"]
    return pd.DataFrame(rows, columns=names)


TREATED = annotated(
    ("P1", "A01", "DMSO", ""), ("P1", "A02", "taxol", "1"), ("P1", "A03", "taxol", "0.10"), ("P2", "A02", "null", "")
)


def test_compounds_and_doses_are_held_out_whole():
    assert assign(TREATED, by="compound", test=["taxol"], control="DMSO").tolist() == ["train", "test", "test", "train"]
    assert assign(TREATED, by="dose", test=["taxol@0.1", "null"], control="DMSO").tolist() == [
        "train", "train", "test", "test",
    ]  # fmt: skip


def test_an_unknown_dose_and_the_control_cannot_be_held_out():
    with pytest.raises(ConfigError, match=r'dose "taxol@10" is not in the data. Did you mean "taxol@1"'):
        assign(TREATED, by="dose", test=["taxol@10"], control="DMSO")
    for by in ("compound", "dose"):
        with pytest.raises(ConfigError, match='"DMSO" is the control'):
            assign(TREATED, by=by, test=["DMSO"], control="DMSO")


def test_a_well_that_a_split_by_compound_would_tear_apart_is_refused_with_both_rows():
    torn = annotated(("P1", "A02", "taxol", "1"), ("P1", "A03", "DMSO", ""), ("P1", "A02", "null", "1"))
    torn["Metadata_Split"] = assign(torn, by="compound", test=["null"], control="DMSO")
    where = [f"load_data.csv row {row}" for row in (2, 3, 4)]
    with pytest.raises(LeakError, match=r"P1 well A02, load_data.csv row 2 \(taxol, train\) and load_data.csv row 4"):
        by_well(torn, where=where)
    torn["Metadata_Split"] = "train"
    assert by_well(torn, where=where) == {("P1", "A02"): "train", ("P1", "A03"): "train"}


def test_a_compound_or_dose_on_both_sides_is_a_leak():
    first, second = (
        part.assign(Metadata_Site="1", Metadata_Cell=[f"{name}{i}" for i in range(len(part))])
        for name, part in (("a", TREATED[:2]), ("b", TREATED[2:]))
    )
    check_disjoint(first, second, by="dose")
    with pytest.raises(LeakError, match='the same compound is in train and in test: compound "taxol"'):
        check_disjoint(first, second, by="compound")
