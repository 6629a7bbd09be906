import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellbridge.conditions import Condition, resolve
from cellbridge.errors import ConditionError

KNOWN = [Condition("DMSO"), Condition("taxol", 0.1), Condition("taxol", 1.0), Condition("NA", 5.0), Condition("null")]


@given(st.floats(min_value=1e-6, max_value=1e6).map(lambda dose: float(f"{dose:g}")))
def test_a_name_reads_back_as_the_same_condition(dose: float) -> None:
    assert Condition.parse(Condition("taxol", dose).name) == Condition("taxol", dose)


@pytest.mark.parametrize("text", ["taxol@1", "taxol @ 1.0 uM", "taxol 1 µM", "TAXOL@1"])
def test_a_condition_is_found_however_its_dose_is_written(text: str) -> None:
    assert resolve(text, KNOWN) == Condition("taxol", 1.0)


@pytest.mark.parametrize(("text", "compound"), [("NA", "NA"), ("null", "null"), ("NA@5", "NA")])
def test_compounds_that_look_like_missing_values_are_names(text: str, compound: str) -> None:
    assert resolve(text, KNOWN).compound == compound


def test_a_jump_identifier_names_its_compound() -> None:
    assert resolve("JCP2022_037716", KNOWN, aliases={"JCP2022_037716": "NA"}) == Condition("NA", 5.0)


def test_a_misspelt_condition_gets_the_nearest_one() -> None:
    with pytest.raises(ConditionError, match=r'"taxl" is not in the data\. Did you mean "taxol"\? Known: DMSO, NA'):
        resolve("taxl", KNOWN)


def test_a_compound_with_several_doses_asks_which() -> None:
    with pytest.raises(ConditionError, match=r'ambiguous: the data holds "taxol@0\.1", "taxol@1"'):
        resolve("taxol", KNOWN)


def test_a_dose_that_is_not_there_is_not_guessed() -> None:
    with pytest.raises(ConditionError, match="at that dose"):
        resolve("taxol@2", KNOWN)
