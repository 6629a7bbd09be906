"""Bridges between images: built over a base or afresh, published, and opened as what is known of the endpoints of each condition."""

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cellbridge.adapters.inside import inject, merged
from cellbridge.assembly.bases import BACKBONES, Base, build_schedule
from cellbridge.assembly.cards import CONTROL_ROW
from cellbridge.bridge.drift import Endpoint
from cellbridge.bridge.images import Clock, ImageBridge, ImageEndpoint
from cellbridge.bridge.linear_guess import Moments
from cellbridge.conditions import Condition
from cellbridge.config import AdapterConfig, NetworkConfig, ScheduleConfig
from cellbridge.data.store import StoreInfo
from cellbridge.errors import ConfigError, ModelError
from cellbridge.networks.bridge_backbone import PLANES, BridgeBackbone, take_weights
from cellbridge.networks.condition_table import ConditionTable
from cellbridge.networks.initialisation import silence
from cellbridge.networks.stored import load_weights, save_conditioning, stock
from cellbridge.networks.unet import require_same_keys
from cellbridge.runs import MANIFEST, RunDir, fingerprint, publish_model, require_intact, write_text
from cellbridge.settings import Section

KIND = "image bridge"
BRIDGE_CARD = "bridge.json"
_MOMENTS = "bridge.safetensors"
_WHOLE = ("conv_in", "conv_out", "proj_out", "proj_out_1", "proj_out_2", "time_embedding", "class_embedding")
"""Layers that are trained whole beside an adapter, where a backbone has them."""


class BridgeCard(Section):
    """What a bridge's directory says of itself (`bridge.json`)."""

    kind: Literal["image bridge"] = "image bridge"
    channels: tuple[str, ...]
    size_px: int
    control: str
    conditions: tuple[str, ...]
    """At the other end from the control."""
    network: NetworkConfig
    schedule: ScheduleConfig
    """Whose times the backbone knows."""
    clock: Clock
    reg: tuple[float, float]
    """Squared volatilities that it was trained at, lowest and highest, in squared units of the images."""
    image_std: float
    """The pixels' standard deviation, of which sqrt(reg) is the share sigma_rel."""
    coupling: str
    """What it was fitted to: `independent` pairs of a plate (bridge matching), `ot` or `gaussian`, and `+imf` after Markovian fitting."""
    align: bool = False
    plates: tuple[str, ...]
    store_sha256: str
    base_sha256: str | None = None


@dataclass(frozen=True)
class Bridge:
    """A fitted bridge between a control and some conditions.

    Parameters
    ----------
    endpoints : condition → what is known between the control and it, at the geometric middle of the volatilities.
    reg : lowest and highest squared volatility that it was trained at.
    image_std : the pixels' standard deviation.
    """

    endpoints: Mapping[Condition, Endpoint]
    control: Condition
    reg: tuple[float, float]
    image_std: float
    card: BridgeCard
    sha256: str
    model: ImageBridge

    @property
    def middle_reg(self) -> float:
        """The geometric middle of the volatilities that it was trained at."""
        return math.sqrt(self.reg[0] * self.reg[1])

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The volatilities, as shares of the pixels' standard deviation."""
        low, high = (math.sqrt(value) / self.image_std for value in self.reg)
        return low, high

    def reg_of(self, sigma_rel: float) -> float:
        """Return the squared volatility of a share of the pixels' standard deviation."""
        return (sigma_rel * self.image_std) ** 2

    def at(self, reg: float) -> Mapping[Condition, Endpoint]:
        """Return condition → endpoint at one volatility.

        Raises
        ------
        ConfigError : the bridge was not trained at it.
        """
        low, high = self.reg
        if not low * (1 - 1e-6) <= reg <= high * (1 + 1e-6):
            asked = math.sqrt(reg) / self.image_std if reg > 0 else 0.0
            trained = " to ".join(f"{value:.4g}" for value in dict.fromkeys(self.sigma_range))
            raise ConfigError(
                f"a volatility of {asked:.4g} of the pixels' standard deviation: the bridge was trained at {trained}. "
                "Choose one of these, or fit it again with another bridge.sigma_rel."
            )
        return _endpoints(self.model, self.card, reg=min(max(reg, low), high))


def _endpoints(model: ImageBridge, card: BridgeCard, *, reg: float) -> dict[Condition, Endpoint]:
    names = enumerate(card.conditions)
    return {Condition.parse(name): ImageEndpoint(model, condition=number, reg=reg) for number, name in names}


def bridge_table(card: BridgeCard) -> ConditionTable:
    """Return what the rows of the network's embedding stand for: each condition as where it leads to, and as where it comes from."""
    names = ["", *(f"{way} {name}" for name in card.conditions for way in ("to", "from"))]
    smiles = card.network.conditioning.smiles
    told = {f"{way} {compound}": f"{way} {text}" for compound, text in smiles.items() for way in ("to", "from")}
    return ConditionTable.of(names, smiles=told)


def build_bridge(card: BridgeCard, moments: Moments, *, seed: int, base: Base | None = None) -> ImageBridge:
    """Build a bridge whose network says nothing yet, so that it is its linear guess; the global random state is left as it was.

    Parameters
    ----------
    seed : of weights that no base gives.
    base : whose weights are taken; every row of the embedding begins near its control's, apart from the others.

    Raises
    ------
    ModelError : the base is of another shape than the card says.
    """
    channels = len(card.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = BACKBONES[card.network.backbone](
            card.network, bridge_table(card), channels=channels + PLANES, size_px=card.size_px, out_channels=channels
        )
    if base is not None:
        take_weights(backbone, base.network, channels=channels, row=CONTROL_ROW)
    silence(backbone)
    network = BridgeBackbone(backbone)
    optimal = card.coupling.startswith("gaussian")
    return ImageBridge(network, moments, build_schedule(card.schedule), clock=card.clock, reg=card.reg, optimal=optimal)


def adapt_bridge(bridge: ImageBridge, config: AdapterConfig, *, seed: int) -> None:
    """Freeze a bridge's network but for an adapter, its first and last layer, the time embedding and the rows of the conditions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject(
            bridge.network,
            rank=config.rank,
            alpha=config.alpha,
            targets=config.targets,
            whole=_WHOLE,
            rslora=config.rslora,
            dora=config.dora,
        )


def publish_bridge(run: RunDir, bridge: ImageBridge, *, ema: Mapping[str, Tensor], card: BridgeCard) -> None:
    """Publish the averaged network (an adapter merged into it) as a diffusers backbone, `unet/`, with moments and card beside it.

    Parameters
    ----------
    ema : of the trained parameters of `bridge.network`, by name.
    """
    averaged: Any = merged(_with_weights(bridge.network, ema)).backbone
    moments = {name: values.detach().cpu().contiguous() for name, values in bridge.linear.state_dict().items()}
    with publish_model(run, manifest={"kind": KIND, "base_sha256": card.base_sha256}) as directory:
        backbone: Any = stock(averaged)
        backbone.save_pretrained(directory / "unet", safe_serialization=True)
        save_conditioning(averaged, directory)
        save_file(moments, directory / _MOMENTS)
        write_text(directory / BRIDGE_CARD, card.model_dump_json(indent=2) + "\n")


def _with_weights(network: BridgeBackbone, weights: Mapping[str, Tensor]) -> BridgeBackbone:
    changed = copy.deepcopy(network)
    trained = {name: p for name, p in changed.named_parameters() if p.requires_grad}
    require_same_keys(dict(weights), dict(trained), source="averaged weights")
    changed.load_state_dict(dict(weights), strict=False)
    return changed


def read_bridge_card(path: Path) -> BridgeCard:
    """Read the card of a `fit-bridge` run between images.

    Raises
    ------
    CheckpointError : no finished model, or one that was changed since. ModelError : it is no bridge between images.
    """
    directory = bridge_directory(path)
    try:
        return BridgeCard.model_validate(json.loads((directory / BRIDGE_CARD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        reason = f"no {BRIDGE_CARD}"
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ModelError(
        f"{directory}: is no bridge between images ({' '.join(reason.split())[:200]}). Give a run of `fit-bridge --store`."
    )


def load_bridge(path: Path, *, device: torch.device | str = "cpu") -> Bridge:
    """Open a `fit-bridge` run between images, or its `model/`.

    Raises
    ------
    CheckpointError : no finished model, or one that was changed since.
    ModelError : it is no bridge between images, or its files do not fit together.
    """
    directory, card = bridge_directory(path), read_bridge_card(path)
    try:
        moments = Moments(**load_file(directory / _MOMENTS))
    except (OSError, TypeError, SafetensorError) as error:
        raise ModelError(f"{directory / _MOMENTS}: cannot be read ({error}). Fit the bridge again.") from None
    model = build_bridge(card, moments, seed=0)
    load_weights(model.network.backbone, directory)
    model = model.to(device).eval().requires_grad_(False)
    middle = math.sqrt(card.reg[0] * card.reg[1])
    return Bridge(
        endpoints=_endpoints(model, card, reg=middle),
        control=Condition.parse(card.control),
        reg=card.reg,
        image_std=card.image_std,
        card=card,
        sha256=fingerprint(directory),
        model=model,
    )


def bridge_directory(path: Path) -> Path:
    """Return the directory of a published bridge: a run's `model/`, or itself; raise CheckpointError where it is none, or was changed."""
    if (path / MANIFEST).is_file():
        require_intact(path)
        return path
    return RunDir(path).require_model()


def start_from(bridge: ImageBridge, card: BridgeCard, path: Path) -> None:
    """Give a bridge's network the weights of another one, between the same conditions.

    Raises
    ------
    ModelError : it lies between other conditions or images, or its network is of another shape.
    """
    other = read_bridge_card(path)
    for name in ("channels", "size_px", "control", "conditions"):
        if getattr(other, name) != getattr(card, name):
            raise ModelError(
                f"{path}: its {name} are {getattr(other, name)}, this bridge's {getattr(card, name)}. Leave init_from out."
            )
    load_weights(bridge.network.backbone, bridge_directory(path))


def require_bridge_fits(card: BridgeCard, info: StoreInfo) -> None:
    """Raise ModelError where a bridge and a store differ in channels, their order, size, or the control's name."""
    if card.channels != info.channels or card.size_px != info.size_px:
        raise ModelError(
            f"the bridge was fitted to {card.size_px} px of {list(card.channels)}, but {info.path} holds {info.size_px} px of "
            f"{list(info.channels)}. Prepare the store with the bridge's size_px and channels."
        )
    if card.control != info.control:
        raise ModelError(
            f'the bridge starts from the control "{card.control}", but the control of {info.path} is "{info.control}". '
            f"If they are the same, set control_name: {card.control} in the manifest and prepare the store again."
        )
