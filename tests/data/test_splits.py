"""Splits hold out whole plates or wells; whatever two sides share is refused by name."""

import numpy as np
import pandas as pd
import pytest

from cellbridge.data.splits import assign, check_disjoint, image_hashes
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


@pytest.mark.parametrize("by", ["plate", "well"])
def test_an_assigned_split_is_disjoint(by):
    split = assign(OBS, by=by, test=["P1"] if by == "plate" else ["B03"])
    check_disjoint(OBS[split == "train"], OBS[split == "test"], by=by)


def test_unknown_plate_or_well_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r'plate "p1" is not in the data. Did you mean "P1"'):
        assign(OBS, by="plate", test=["p1"])
    with pytest.raises(ConfigError, match=r'well "B3" is not in the data. Did you mean "B03"'):
        assign(OBS, by="well", test=["B3"])


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
