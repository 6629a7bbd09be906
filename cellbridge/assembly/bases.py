"""Bases: from a card to a network, to a published diffusers folder and back."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellbridge.adapters import lora
from cellbridge.assembly.cards import CARD, ModelCard, model_directory, read_card
from cellbridge.conditions import Condition
from cellbridge.config import NoiseConfig, ScheduleConfig
from cellbridge.diffusion.denoiser import Denoiser, NetworkDenoiser
from cellbridge.diffusion.schedule import Schedule, beta_range, make_schedule
from cellbridge.errors import ModelError
from cellbridge.networks.backbones import (
    conditioned_cross_attention_unet,
    conditioned_dit,
    conditioned_unet,
    is_stock,
)
from cellbridge.networks.condition_table import ConditionTable
from cellbridge.networks.conditioning import ConditionedBackbone
from cellbridge.networks.stored import load_weights, save_conditioning, stock
from cellbridge.networks.unet import load_unet, require_same_keys, save_base
from cellbridge.runs import RunDir, fingerprint, publish_model, write_text

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "unet": conditioned_unet,
    "cross_attention_unet": conditioned_cross_attention_unet,
    "dit": conditioned_dit,
}


@dataclass(frozen=True)
class Model:
    """What models one condition: a denoiser, the condition's row in its embedding, and the card of the weights."""

    denoiser: Denoiser
    row: int
    card: ModelCard


@dataclass(frozen=True)
class Base:
    """A pretrained model: frozen weights, what they were trained on, and their hash."""

    network: nn.Module
    card: ModelCard
    sha256: str
    schedule: Schedule

    def denoiser(self, network: nn.Module | None = None) -> Denoiser:
        """Return the denoiser over the base's weights, or over a network of the same shape."""
        return NetworkDenoiser(
            network or self.network,
            self.schedule,
            self.card.schedule.prediction,
            learned_range=self.card.schedule.variance == "learned_range",
        )


def build_schedule(config: NoiseConfig) -> Schedule:
    """Build the noise schedule, on the CPU."""
    return make_schedule(
        config.kind,
        config.steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        zero_terminal_snr=config.zero_terminal_snr,
    )


def _betas(config: ScheduleConfig) -> tuple[float, float] | None:
    if config.kind == "cosine":
        return None
    return beta_range(config.kind, config.steps, beta_start=config.beta_start, beta_end=config.beta_end)


def build_network(card: ModelCard, *, seed: int, init_from: Path | None = None) -> nn.Module:
    """Build a base's backbone, leaving the global random state as it was.

    Parameters
    ----------
    seed : of the weights it starts from.
    init_from : another base's run or model directory, whose weights are taken instead.
    """
    channels = len(card.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build = BACKBONES[card.network.backbone]
        twice = {"out_channels": 2 * channels} if card.schedule.variance == "learned_range" else {}
        network = build(card.network, condition_table(card), channels=channels, size_px=card.size_px, **twice)
    if init_from is not None:
        load_weights(network, model_directory(init_from, "base"))
    return network


def condition_table(card: ModelCard) -> ConditionTable:
    """Return what a base's embedding rows stand for, and the plates that it has tokens of."""
    chosen = card.network.conditioning
    plates = card.plates if "plate" in chosen.parts else ()
    return ConditionTable.of(card.conditions, smiles=chosen.smiles, plates=plates)


def reads_unseen(network: nn.Module, condition: Condition) -> bool:
    """Say whether a network can be asked for a condition that it was not trained on.

    It can where it reads compounds' names or SMILES, or where it is told the dose apart and was trained on the compound at others.
    """
    if not isinstance(network, ConditionedBackbone) or network.conditioner is None:
        return False
    tokens = network.conditioner.tokens
    known = {Condition.parse(name).compound for name in tokens.table.names[1:]}
    other_dose = "dose" in tokens.kinds and condition.compound in known and condition.dose_um is not None
    return network.conditioner.reads_texts or other_dose


def with_unseen(base: Base, condition: Condition) -> Base:
    """Return the base with one more row, for a condition that it was not trained on; the base itself is left as it is.

    Raises
    ------
    ModelError : the base does not read names or SMILES, nor doses of the compound. ConfigError : the compound's SMILES is not among
        those of the base.
    """
    if not reads_unseen(base.network, condition):
        raise ModelError(
            f'the base was not trained on "{condition.name}" and does not read names. Fine-tune an adapter for it, or pretrain with '
            "network.conditioning.compound: characters or fingerprint."
        )
    card = base.card.model_copy(update={"conditions": (*base.card.conditions, condition.name)})
    network: Any = copy.deepcopy(base.network)
    network.conditioner.tokens.describe(condition_table(card))
    return Base(network, card, base.sha256, base.schedule)


def with_smiles(base: Base, smiles: Mapping[str, str]) -> Base:
    """Return the base with the SMILES of more compounds, which `with_unseen` then finds.

    Raises
    ------
    ModelError : the base reads names, or was trained on another SMILES of one of the compounds.
    """
    if not smiles:
        return base
    chosen = base.card.network.conditioning
    if chosen.text != "smiles":
        raise ModelError(
            "smiles: the base reads no SMILES. Leave them out, or pretrain with conditioning.text: smiles."
        )
    for compound, text in smiles.items():
        if chosen.smiles.get(compound, text) != text:
            raise ModelError(
                f'smiles: the base was trained on {chosen.smiles[compound]} for "{compound}", not {text}. Leave it out.'
            )
    conditioning = chosen.model_copy(update={"smiles": {**chosen.smiles, **smiles}})
    network = base.card.network.model_copy(update={"conditioning": conditioning})
    return replace(base, card=base.card.model_copy(update={"network": network}))


def with_spare_row(base: Base, condition: str) -> nn.Module:
    """Return a copy of the base's network in which the row that an adapter takes has its condition's dose and text."""
    network = copy.deepcopy(base.network)
    describe_spare_row(network, base, condition)
    return network


def describe_spare_row(network: Any, base: Base, condition: str) -> None:
    if isinstance(network, ConditionedBackbone) and network.conditioner is not None:
        card = base.card.model_copy(update={"conditions": (*base.card.conditions[:-1], condition)})
        network.conditioner.tokens.describe(condition_table(card))


def publish_base(run: RunDir, network: nn.Module, *, ema: Mapping[str, Tensor], card: ModelCard) -> None:
    """Publish the averaged weights as a diffusers folder with the card beside it."""
    averaged = copy.deepcopy(network)
    require_same_keys(dict(ema), dict(lora.trainable(averaged)), source="averaged weights")
    averaged.load_state_dict(dict(ema), strict=False)  # buffers and what is frozen are not averaged
    with publish_model(run, manifest={"kind": card.kind}) as directory:
        save_base(
            stock(averaged),
            directory,
            kind=card.schedule.kind,
            steps=card.schedule.steps,
            prediction=card.schedule.prediction,
            betas=_betas(card.schedule),
            zero_terminal_snr=card.schedule.zero_terminal_snr,
            learned_range=card.schedule.variance == "learned_range",
        )
        save_conditioning(averaged, directory)
        write_text(directory / CARD, card.model_dump_json(indent=2) + "\n")


def load_base(path: Path, *, device: torch.device | str = "cpu") -> Base:
    """Open a `pretrain` run's model.

    Raises
    ------
    CheckpointError : the run has no finished model. ModelError : its weights or card do not fit together.
    """
    directory = RunDir(path).require_model()
    card = read_card(directory, kind="base")
    if is_stock(card.network, size_px=card.size_px):
        network: nn.Module = load_unet(directory / "unet")
    else:
        network = build_network(card, seed=0, init_from=directory)
    network = network.to(device).eval().requires_grad_(False)
    return Base(network, card, fingerprint(path), build_schedule(card.schedule).to(device))
