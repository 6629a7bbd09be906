import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellbridge.conditions import Condition, resolve, resolve_or_read, written
from cellbridge.errors import ConditionError

KNOWN = [Condition("DMSO"), Condition("taxol", 0.1), Condition("taxol", 1.0), Condition("NA", 5.0), Condition("null")]


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


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_a_name_reads_back_as_the_same_condition_whatever_the_dose(dose: float) -> None:
    assert Condition.parse(Condition("taxol", dose).name) == Condition("taxol", dose)
    assert resolve(Condition("taxol", dose).name, [Condition("taxol", dose), Condition("other")]).dose_um == dose


def test_a_dose_is_written_in_its_fewest_digits() -> None:
    doses = {1.0: "taxol@1", 0.1: "taxol@0.1", 3.3333333: "taxol@3.3333333", 1e6: "taxol@1000000", 1e-7: "taxol@1e-07"}
    assert {dose: Condition("taxol", dose).name for dose in doses} == doses


def test_a_dose_that_is_there_to_the_digit_is_not_ambiguous() -> None:
    near = [Condition("taxol", 1.0), Condition("taxol", 1.0000005)]
    assert resolve("taxol@1", near) == near[0]


def test_conditions_have_file_names_of_their_own() -> None:
    names = ["a/b@1", "a b@1", "a_b@1", "a+b@1", "ä", "β", "..", ".", "_", "taxol@1"]
    slugs = [Condition.parse(name).slug for name in names]
    assert len(set(slugs)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_@-][A-Za-z0-9._@-]*", slug) for slug in slugs)
    assert slugs[-1] == "taxol@1"


def test_another_dose_of_a_known_compound_is_spelt_as_the_known_ones() -> None:
    aliases = {"JCP2022_037716": "taxol"}
    for text in ("TAXOL@3", "taxol 3 uM", "JCP2022_037716@3"):
        assert resolve_or_read(text, KNOWN, aliases=aliases, unseen=True) == Condition("taxol", 3.0)
    assert written("Colchicine@3", KNOWN) == Condition("Colchicine", 3.0)


@pytest.mark.parametrize("text", ["", "  ", "<adapter>", "new@-5", "new@1e999"])
def test_what_names_no_compound_or_no_dose_is_refused_as_an_unseen_condition(text: str) -> None:
    with pytest.raises(ConditionError, match="Write it as compound@dose"):
        resolve_or_read(text, KNOWN, unseen=True)


def test_a_name_too_long_for_a_file_is_cut_and_stays_its_own():
    first, second = (Condition.parse("C" * 400 + end).slug for end in "NO")
    assert first != second
    assert len(first) < 200
