"""Wells and plate formats."""

import pytest

from cellbridge.data.layout import SHAPES, parse_well, well_name
from cellbridge.errors import ManifestError


@pytest.mark.parametrize("plate_format", SHAPES)
def test_every_well_of_a_plate_reads_back_as_itself(plate_format: int) -> None:
    rows, columns = SHAPES[plate_format]
    names = {well_name(row, column) for row in range(rows) for column in range(columns)}
    assert len(names) == plate_format
    assert {parse_well(name, plate_format=plate_format) for name in names} == names


@pytest.mark.parametrize("text", ["a1", "a01", "A1", "A01", " A001 "])
def test_all_spellings_of_a_well_are_one_well(text: str) -> None:
    assert parse_well(text) == "A01"


def test_a_well_outside_its_plate_is_refused_with_row_range_and_remedy() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_well("Q25", where="wells.csv row 118")
    assert str(caught.value) == (
        'wells.csv row 118: well "Q25" is outside a 384-well plate (A01–P24). Fix the row or set plate_format: 1536.'
    )


@pytest.mark.parametrize("text", ["", "B", "12", "A0", "A-1", "AAA1", "BA01", "NA"])
def test_what_is_no_well_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="well"):
        parse_well(text, plate_format=1536)
