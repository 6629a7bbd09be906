"""A weaker self of a model, for autoguidance: another run, a checkpoint, or a snapshot of averages."""

import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cellbridge.adapters import library, lora
from cellbridge.assembly.adapters import attach_adapter, load_adapted
from cellbridge.assembly.bases import Base, build_network, load_base, reads_unseen, with_unseen
from cellbridge.assembly.cards import SPARE, ModelCard, read_card
from cellbridge.conditions import Condition
from cellbridge.diffusion.denoiser import Denoiser
from cellbridge.errors import CheckpointError, ConditionError, ModelError, did_you_mean
from cellbridge.networks.unet import require_same_keys
from cellbridge.runs import RunDir, fingerprint, read_manifest
from cellbridge.training import checkpoint


@dataclass(frozen=True)
class Weaker:
    """A weaker model: a base with all of its conditions, or (where `base` is None) an adapter with the one that it is for."""

    path: Path
    denoiser: Denoiser
    card: ModelCard
    base: Base | None

    def of(self, condition: str) -> tuple[Denoiser, int]:
        """Return the denoiser of a condition and its row.

        Raises
        ------
        ConditionError : the weaker model was not trained on the condition, and does not read its name.
        """
        known = [self.card.condition]
        if self.base is not None:
            known = [name for name in self.card.conditions if name not in ("", SPARE)]
        if condition in known:
            return self.denoiser, self.card.row(condition)
        unseen = Condition.parse(condition)
        if self.base is not None and reads_unseen(self.base.network, unseen):
            return with_unseen(self.base, unseen).denoiser(), len(self.card.conditions)
        raise ConditionError(
            f'{self.path}: the weaker model knows {known}, not "{condition}". Give a weaker model of that condition (of an '
            f"adapter, an earlier checkpoint of its own run).{did_you_mean(condition, known)}"
        )


def load_weaker(path: Path, base: Base) -> Weaker:
    """Open a weaker self of a base, or of an adapter over it.

    Parameters
    ----------
    path : a finished run of `pretrain` or `finetune`, one of its checkpoints, or one of its snapshots of averages, of which the
        narrowest is taken; the last two need the run's model, which says what they are.

    Raises
    ------
    CheckpointError : there is no such model or snapshot, or it is damaged.
    ModelError : it is of other channels, another size or noise schedule, or an adapter of another base.
    """
    run, averaged = _snapshot(path)
    directory = RunDir(run).require_model()
    kind = read_manifest(directory).get("kind")
    if kind not in ("base", "adapter"):
        raise ModelError(f"{run}: holds a model of kind {kind}. Give a run of `pretrain` or of `finetune` as weaker.")
    card = read_card(directory, kind=kind)
    _require_alike(card, base.card, path)
    if kind == "base":
        opened = _base(run, averaged, card, base)
        return Weaker(path, opened.denoiser(), card, opened)
    return Weaker(path, _adapter(run, averaged, card, base), card, None)


def _snapshot(path: Path) -> tuple[Path, dict[str, Tensor] | None]:
    """Return the run that a path belongs to, and the averaged weights of what is not the run itself."""
    if path.is_file():
        return path.parent.parent, _narrowest(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such run, checkpoint or snapshot. Check the path given as weaker.")
    if (path / "state.json").is_file():
        return path.parent.parent, checkpoint.load(path).ema
    return path, None


def _narrowest(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is no readable snapshot of averages ({error}).") from None
    keys = {name: re.fullmatch(r"(\d*\.?\d+(?:e-?\d+)?)/(.+)", name) for name in tensors}
    widths = {float(match[1]) for match in keys.values() if match}
    if not tensors or not all(keys.values()):
        raise CheckpointError(f"{path}: is no snapshot of averages (`RUN/averages/step-….safetensors`).")
    narrowest = min(widths)
    return {match[2]: tensors[key].float() for key, match in keys.items() if match and float(match[1]) == narrowest}


def _require_alike(card: ModelCard, wanted: ModelCard, path: Path) -> None:
    if card.channels != wanted.channels or card.size_px != wanted.size_px:
        raise ModelError(
            f"{path}: the weaker model makes {card.size_px} px of {list(card.channels)}, but the model {wanted.size_px} px of "
            f"{list(wanted.channels)}. Give one that was trained on the same channels and size."
        )


def _base(run: Path, averaged: dict[str, Tensor] | None, card: ModelCard, like: Base) -> Base:
    device = like.schedule.alpha_bar.device
    opened = load_base(run, device=device)
    if averaged is None:
        return opened
    network = build_network(card, seed=0)
    network.load_state_dict(opened.network.state_dict())
    require_same_keys(averaged, dict(lora.trainable(network)), source=str(run))
    network.load_state_dict(averaged, strict=False)  # buffers and what is frozen are not averaged
    return Base(network.to(device).eval().requires_grad_(False), card, fingerprint(run), opened.schedule)


def _adapter(run: Path, averaged: dict[str, Tensor] | None, card: ModelCard, base: Base) -> Denoiser:
    denoiser, _ = load_adapted(base, run)  # which refuses an adapter of another base
    if averaged is None:
        return denoiser
    assert card.adapter is not None
    model = attach_adapter(base, card.adapter, condition=card.condition, seed=0)
    lora.copy_weights(model, averaged)
    return base.denoiser(library.merge(model).eval().requires_grad_(False))
