"""Conditions: a compound at a dose, written `compound@dose` (micromolar), and their resolution from what a user types."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cellbridge.errors import ConditionError, did_you_mean

_LONGEST_SLUG = 150
"""Characters; most file systems take 255, and there are endings to come."""


@dataclass(frozen=True, order=True)
class Condition:
    """A compound at a dose; the dose is None where the data gives none (and for a control)."""

    compound: str
    dose_um: float | None = None

    @property
    def name(self) -> str:
        """`compound@dose`, or the compound alone where there is no dose."""
        return self.compound if self.dose_um is None else f"{self.compound}@{self.dose}"

    @property
    def dose(self) -> str:
        """The dose in the fewest digits that read back as the same number; "" where there is none."""
        return "" if self.dose_um is None else repr(float(self.dose_um)).removesuffix(".0")

    @property
    def slug(self) -> str:
        """A file name: the name itself, or, where it holds what a file name may not or is too long, that replaced and a hash appended."""
        slug = re.sub(r"^\.|[^A-Za-z0-9.@-]+", "_", self.name)[:_LONGEST_SLUG]
        return slug if slug == self.name else f"{slug}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read `compound`, `compound@50`, or `compound 50 uM`; a compound may contain any character but `@`."""
        text = text.strip()
        match = re.fullmatch(r"(.+?)\s*@\s*([0-9.eE+-]+)\s*(?:[uµμ]M)?", text) or re.fullmatch(
            r"(.+?)\s+([0-9.eE+-]+)\s*[uµμ]M", text
        )
        if match is None:
            return cls(text)
        try:
            return cls(match[1], float(match[2]))
        except ValueError:
            return cls(text)


def resolve(text: str, known: Iterable[Condition], *, aliases: Mapping[str, str] | None = None) -> Condition:
    """Return the known condition that `text` names.

    Parameters
    ----------
    text : a compound, a compound at a dose, or an identifier listed in `aliases`.
    known : the conditions that the data holds.
    aliases : identifier (such as a JUMP id `JCP2022_037716`) → compound.

    Raises
    ------
    ConditionError : nothing has that name (the nearest one is offered), or the compound has several doses.
    """
    conditions = list(known)
    wanted = Condition.parse(text)
    compound = (aliases or {}).get(wanted.compound, wanted.compound)
    same = [c for c in conditions if c.compound.casefold() == compound.casefold()]
    exact = [c for c in same if c.compound == compound] or same
    if wanted.dose_um is not None:
        near = [c for c in exact if c.dose_um is not None and abs(c.dose_um - wanted.dose_um) <= 1e-6 * c.dose_um]
        exact = [c for c in near if c.dose_um == wanted.dose_um] or near
    if len(exact) == 1:
        return exact[0]
    if len(exact) > 1:
        doses = ", ".join(f'"{c.name}"' for c in sorted(exact, key=lambda c: c.dose_um or 0.0))
        raise ConditionError(f'condition "{text}" is ambiguous: the data holds {doses}. Name one of them.')
    if same:
        names = [c.name for c in same]
        raise ConditionError(f'condition "{text}" is not in the data at that dose.{did_you_mean(text, names)}')
    names = [c.name for c in conditions] + [c.compound for c in conditions if c.dose_um is not None]
    raise ConditionError(f'condition "{text}" is not in the data.{did_you_mean(text, names)}')


def resolve_or_read(
    text: str, known: Iterable[Condition], *, aliases: Mapping[str, str] | None = None, unseen: bool
) -> Condition:
    """Return the known condition that `text` names or, where `unseen` ones are asked for, the condition that it writes.

    Raises
    ------
    ConditionError : as `resolve`; with `unseen` only for a compound that is known at several doses and named without one, and as
        `written`.
    """
    conditions = list(known)
    try:
        return resolve(text, conditions, aliases=aliases)
    except ConditionError:
        if not unseen:
            raise
        wanted = written(text, conditions, aliases=aliases)
        if wanted.dose_um is None and any(c.compound == wanted.compound for c in conditions):
            raise
        return wanted


def written(text: str, known: Iterable[Condition] = (), *, aliases: Mapping[str, str] | None = None) -> Condition:
    """Return the condition that `text` writes, its compound spelt as it is among the known ones, where it is.

    Raises
    ------
    ConditionError : it names no compound, or a dose that is negative or not finite.
    """
    wanted = Condition.parse(text)
    if not wanted.compound or re.fullmatch("<.*>", wanted.compound):
        raise ConditionError(f'condition "{text}" names no compound. Write it as compound@dose, such as taxol@1.')
    if wanted.dose_um is not None and not 0 <= wanted.dose_um < math.inf:
        raise ConditionError(f'condition "{text}": expected a dose of 0 or more micromolar. Write it as compound@dose.')
    compound = (aliases or {}).get(wanted.compound, wanted.compound)
    same = {c.compound for c in known if c.compound.casefold() == compound.casefold()}
    return Condition(compound if compound in same or len(same) != 1 else same.pop(), wanted.dose_um)
