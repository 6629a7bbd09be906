"""Adapters over one base: made, published, opened, and several of them swapped and blended."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cellbridge.adapters import library, lora
from cellbridge.adapters.adapted import AdaptedNetwork
from cellbridge.assembly.bases import Base, Model, describe_spare_row, reads_unseen, with_spare_row, with_unseen
from cellbridge.assembly.cards import CARD, CONTROL_ROW, SPARE, ModelCard, model_directory, read_card
from cellbridge.conditions import Condition
from cellbridge.config import AdapterConfig
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.errors import ConditionError, ModelError, did_you_mean
from cellbridge.runs import RunDir, publish_model, write_text


@dataclass(frozen=True)
class Attached:
    """A base, the adapters over it of which `switch` puts some in force, and the card of each."""

    base: Base
    network: AdaptedNetwork
    cards: Mapping[Condition, ModelCard]


def adapter_card(
    base: Base, condition: str, *, adapter: AdapterConfig, plates: Iterable[str], store_sha256: str
) -> ModelCard:
    """Return the card of an adapter for `condition`, which takes the base's spare embedding row.

    Where the base has a row for it already, that row is named as the base's, so that one row alone bears the condition's name.
    """
    rows = (f"{name} (base)" if name == condition else name for name in base.card.conditions[:-1])
    return base.card.model_copy(
        update={
            "kind": "adapter",
            "conditions": (*rows, condition),
            "plates": tuple(sorted(set(plates))),
            "store_sha256": store_sha256,
            "adapter": adapter,
            "base_sha256": base.sha256,
        }
    )


def attach_adapter(
    base: Base, config: AdapterConfig, *, condition: str, seed: int, init_from: Path | None = None
) -> nn.Module:
    """Return the base with a LoRA adapter whose condition row starts as a copy of the control's.

    Parameters
    ----------
    condition : what the base's spare row is to stand for.
    init_from : an adapter's directory whose weights it starts from; fresh ones are drawn from `seed`.
    """
    network = with_spare_row(base, condition)
    lora.copy_row(network, source=CONTROL_ROW, target=len(base.card.conditions) - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = lora.attach(
            network,
            rank=config.rank,
            alpha=config.alpha,
            targets=config.targets,
            rslora=config.rslora,
            dora=config.dora,
        )
    if init_from is not None:
        directory = model_directory(init_from, "adapter")
        loaded = library.load_adapter(with_spare_row(base, condition), directory, base_sha256=base.sha256)
        given = dict(loaded.named_parameters())
        lora.copy_weights(model, {name: given[name] for name in lora.trainable(model) if name in given})
    return model


def publish_adapter(run: RunDir, model: nn.Module, *, ema: Mapping[str, Tensor], card: ModelCard) -> None:
    """Publish the averaged adapter as a peft directory, bound to its base by hash."""
    assert card.base_sha256 is not None
    with publish_model(run, manifest={"kind": card.kind, "base_sha256": card.base_sha256}) as directory:
        library.save_adapter(model, directory, base_sha256=card.base_sha256, ema=ema)
        write_text(directory / CARD, card.model_dump_json(indent=2) + "\n")


def load_adapted(base: Base, path: Path) -> tuple[Denoiser, ModelCard]:
    """Return the denoiser with a `finetune` run's adapter merged in, and the adapter's card.

    Raises
    ------
    ModelError : the adapter belongs to another base (both hashes are named).
    """
    directory = RunDir(path).require_model()
    card = read_card(directory, kind="adapter")
    network = library.load_adapter(with_spare_row(base, card.condition), directory, base_sha256=base.sha256)
    return base.denoiser(library.merge(network).eval().requires_grad_(False)), card


def attach_adapters(base: Base, adapters: Sequence[Path]) -> Attached:
    """Attach adapters to one copy of the base, each by the name of its condition.

    A condition that is in force by a part w of itself is w of the way from the control, from which every adapter started.

    Raises
    ------
    ModelError : two adapters of one condition, or an adapter of another base.
    """
    start = copy.deepcopy(base.network)
    lora.copy_row(start, source=CONTROL_ROW, target=len(base.card.conditions) - 1)
    network = AdaptedNetwork(start, sha256=base.sha256)
    cards: dict[Condition, ModelCard] = {}
    given: dict[Condition, Path] = {}
    for path in adapters:
        directory = RunDir(path).require_model()
        card = read_card(directory, kind="adapter")
        condition = _alone(card, path, given)
        network.attach(condition.name, directory)
        cards[condition] = card
    return Attached(base, network, cards)


def card_of(attached: Attached, condition: Condition, *, shares: Mapping[Condition, float] | None = None) -> ModelCard:
    """Return the card of what models a condition, which `switch` puts in force.

    Parameters
    ----------
    shares : of adapters that are blended; by default the condition's own adapter, or else the base where it was trained on the
        condition or reads its name.

    Raises
    ------
    ConditionError : nothing models the condition.
    """
    base = attached.base.card
    parts = _parts(attached, condition, shares)
    if parts:
        cards = [attached.cards[part] for part in parts]
        named = (*cards[0].conditions[:-1], condition.name)
        plates = tuple(sorted({plate for card in cards for plate in card.plates}))
        return cards[0].model_copy(update={"conditions": named, "plates": plates})
    if condition.name in base.conditions:
        return base
    if reads_unseen(attached.base.network, condition):
        return base.model_copy(update={"conditions": (*base.conditions, condition.name)})
    raise ConditionError(
        f'no model of "{condition.name}" was given: run `cellbridge finetune --condition "{condition.name}"` and pass its run as '
        f"--adapter.{did_you_mean(condition.name, [c.name for c in attached.cards])}"
    )


def switch(attached: Attached, condition: Condition, *, shares: Mapping[Condition, float] | None = None) -> Model:
    """Put in force what models a condition, and return it; it holds until the next switch. Parameters and errors as `card_of`."""
    base, network = attached.base, attached.network
    card = card_of(attached, condition, shares=shares)
    parts = _parts(attached, condition, shares)
    if parts:
        network.use({part.name: share for part, share in parts.items()})
        describe_spare_row(network.network, base, condition.name)
        return Model(base.denoiser(network.network), len(card.conditions) - 1, card)
    if card is base.card:
        return Model(base.denoiser(), card.row(condition.name), card)
    return Model(with_unseen(base, condition).denoiser(), len(base.card.conditions), card)


def _parts(
    attached: Attached, condition: Condition, shares: Mapping[Condition, float] | None
) -> Mapping[Condition, float]:
    if shares is not None:
        return shares
    return {condition: 1.0} if condition in attached.cards else {}


def load_models(base: Base, adapters: Sequence[Path], *, asked: Iterable[Condition] = ()) -> dict[Condition, Model]:
    """Return what models each condition: its adapter, or else the base where it was trained on the condition or reads its name.

    Parameters
    ----------
    asked : conditions that are wanted; those that have no model get one where the base reads names or SMILES.

    Raises
    ------
    ModelError : two adapters of one condition, or an adapter of another base.
    """
    models: dict[Condition, Model] = {}
    given: dict[Condition, Path] = {}
    for path in adapters:
        denoiser, card = load_adapted(base, path)
        condition = _alone(card, path, given)
        models[condition] = Model(denoiser, len(card.conditions) - 1, card)
    for row, name in enumerate(base.card.conditions):
        if name not in ("", SPARE):
            models.setdefault(Condition.parse(name), Model(base.denoiser(), row, base.card))
    for condition in asked:
        if condition not in models and reads_unseen(base.network, condition):
            extended = with_unseen(base, condition)
            models[condition] = Model(extended.denoiser(), len(base.card.conditions), extended.card)
    return models


def _alone(card: ModelCard, path: Path, given: dict[Condition, Path]) -> Condition:
    """Return an adapter's condition and note its path; raise ModelError where another adapter has that condition."""
    condition = Condition.parse(card.condition)
    if condition in given:
        raise ModelError(f"{given[condition]} and {path}: are both adapters for {condition.name}. Give one of them.")
    given[condition] = path
    return condition
