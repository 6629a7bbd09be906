"""Priors of x_T: published by `fit-prior`, each bound to the model that its noise was inverted under, and opened again."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cellbridge.assembly.bases import Base
from cellbridge.assembly.cards import CARD, read_card
from cellbridge.conditions import Condition
from cellbridge.config import SolverConfig
from cellbridge.diffusion.noise_bank import NoiseBank
from cellbridge.diffusion.noise_field import NoiseField
from cellbridge.diffusion.noise_flow import FlowPrior
from cellbridge.diffusion.prior import XTPrior, load_prior, save_prior
from cellbridge.errors import ConditionError, ModelError, did_you_mean
from cellbridge.runs import RunDir, fingerprint, publish_model, write_text
from cellbridge.settings import Section

PRIORS: dict[str, type[XTPrior]] = {"field": NoiseField, "bank": NoiseBank, "flow": FlowPrior}


class PriorEntry(Section):
    """The prior of one condition."""

    file: str
    model_sha256: str
    """Of the base or the adapter under which the cells were inverted."""
    n: int
    """Cells it was fitted to."""
    plates: tuple[str, ...]


class PriorCard(Section):
    """What a directory of priors says of itself (`model/cellbridge.json`)."""

    kind: Literal["prior"] = "prior"
    prior: Literal["field", "bank", "flow"]
    channels: tuple[str, ...]
    size_px: int
    base_sha256: str
    store_sha256: str
    solver: SolverConfig
    """Of the inversion."""
    conditions: dict[str, PriorEntry]


def model_hashes(base: Base, adapters: Sequence[Path], conditions: Iterable[Condition]) -> dict[Condition, str]:
    """Return the hash of what models each condition: its adapter, or else the base."""
    adapted = {Condition.parse(read_card(RunDir(path).model, kind="adapter").condition): path for path in adapters}
    return {c: fingerprint(adapted[c]) if c in adapted else base.sha256 for c in conditions}


def publish_priors(run: RunDir, priors: Mapping[Condition, XTPrior], card: PriorCard) -> None:
    """Publish priors, a safetensors file per condition, with the card beside them."""
    with publish_model(run, manifest={"kind": card.kind, "base_sha256": card.base_sha256}) as directory:
        for condition, prior in priors.items():
            save_prior(prior, directory / card.conditions[condition.name].file)
        write_text(directory / CARD, card.model_dump_json(indent=2) + "\n")


def read_prior_card(path: Path) -> PriorCard:
    """Read what a `fit-prior` run says of its priors.

    Raises
    ------
    CheckpointError : the run has no finished model. ModelError : it holds no priors.
    """
    directory = RunDir(path).require_model()
    try:
        return PriorCard.model_validate_json((directory / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError):
        raise ModelError(f"{directory}: holds no priors of x_T. Give the run of `cellbridge fit-prior`.") from None


def prior_plates(path: Path, conditions: Iterable[Condition]) -> dict[str, tuple[str, ...]]:
    """Return the plates whose cells each condition's prior was fitted to; for `evaluate` to hold against those it judges on."""
    entries = read_prior_card(path).conditions
    return {c.name: entries[c.name].plates for c in conditions if c.name in entries}


def load_priors(path: Path, *, base: Base, models: Mapping[Condition, str]) -> dict[Condition, XTPrior]:
    """Open the priors of some conditions, each for the model that it was fitted under and no other.

    Parameters
    ----------
    models : condition → hash of what models it, as `model_hashes` gives it.

    Raises
    ------
    ModelError : the priors belong to another base or adapter (both hashes are named). ConditionError : a condition has none.
    """
    card = read_prior_card(path)
    if card.base_sha256 != base.sha256:
        raise ModelError(
            f"{path}: these priors belong to the base {card.base_sha256}, but the base given is {base.sha256}. "
            "Give the base they were fitted under, or fit them again on this one."
        )
    found = {}
    for condition, sha256 in models.items():
        entry = card.conditions.get(condition.name)
        if entry is None:
            raise ConditionError(
                f'{path}: holds no prior of x_T for "{condition.name}". Run `cellbridge fit-prior --condition '
                f'"{condition.name}"` with its model.{did_you_mean(condition.name, card.conditions)}'
            )
        if entry.model_sha256 != sha256:
            raise ModelError(
                f"{path}: the prior of {condition.name} belongs to the model {entry.model_sha256}, but the one given is {sha256}. "
                "Give the adapter it was fitted under, or fit it again."
            )
        found[condition] = load_prior(RunDir(path).model / entry.file, PRIORS)
    return found
