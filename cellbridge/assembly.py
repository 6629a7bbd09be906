"""Config or run directory → live parts: the only place that turns names into classes, and models into directories and back."""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cellbridge.adapters import library, lora
from cellbridge.adapters.adapted import AdaptedNetwork
from cellbridge.conditions import Condition
from cellbridge.config import (
    AdapterConfig,
    NetworkConfig,
    ScheduleConfig,
    Section,
    SolverConfig,
)
from cellbridge.data.store import StoreInfo
from cellbridge.diffusion.ancestral import Ddim, Ddpm
from cellbridge.diffusion.denoiser import Denoiser, NetworkDenoiser
from cellbridge.diffusion.guidance import (
    ClassifierFreeGuidance,
    DistanceGuidance,
    GuidanceInterval,
    scales_by_distance,
)
from cellbridge.diffusion.inversion import Inversion
from cellbridge.diffusion.multistep import DpmSolverPlusPlus, Pndm
from cellbridge.diffusion.samplers import Flow, Sampler
from cellbridge.diffusion.schedule import Schedule, beta_range, make_schedule
from cellbridge.diffusion.thresholding import Clipping, DynamicThresholding
from cellbridge.errors import CheckpointError, ConditionError, ModelError, did_you_mean
from cellbridge.networks.backbones import (
    conditioned_cross_attention_unet,
    conditioned_dit,
    conditioned_unet,
    is_stock,
)
from cellbridge.networks.classifier import WEIGHTS as CLASSIFIER_WEIGHTS
from cellbridge.networks.classifier import Classifier, load_classifier_directory
from cellbridge.networks.condition_table import ConditionTable
from cellbridge.networks.conditioning import ConditionedBackbone, condition_rows
from cellbridge.networks.stored import load_weights, save_conditioning, stock
from cellbridge.networks.unet import WEIGHTS as UNET_WEIGHTS
from cellbridge.networks.unet import load_unet, require_same_keys, save_base
from cellbridge.runs import MANIFEST, RunDir, fingerprint, publish_directory, read_manifest, require_intact, write_text
from cellbridge.translators.ddib import Ddib
from cellbridge.translators.translator import Translator

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "unet": conditioned_unet,
    "cross_attention_unet": conditioned_cross_attention_unet,
    "dit": conditioned_dit,
}
TRANSLATORS = {"ddib": Ddib}
SAMPLERS: dict[str, Callable[[SolverConfig], Sampler]] = {
    "flow": lambda solver: Flow(solver.steps, solver.order, solver.grid),
    "ddim": lambda solver: Ddim(solver.steps, solver.eta, solver.grid),
    "ddpm": lambda solver: Ddpm(solver.steps, solver.variance, solver.grid),
    "pndm": lambda solver: Pndm(solver.steps, solver.runge_kutta),
    "dpm++": lambda solver: DpmSolverPlusPlus(solver.steps, solver.grid),
}

CARD = "cellbridge.json"
NULL_ROW = 0
CONTROL_ROW = 1
SPARE = "<adapter>"


class ModelCard(Section):
    """What a model directory says of itself, beside the weights (`cellbridge.json`)."""

    kind: Literal["base", "adapter"]
    channels: tuple[str, ...]
    size_px: int
    conditions: tuple[str, ...]
    """What the rows of the condition embedding mean; row 0 is the unconditional one."""
    network: NetworkConfig
    schedule: ScheduleConfig
    plates: tuple[str, ...]
    store_sha256: str
    adapter: AdapterConfig | None = None
    base_sha256: str | None = None

    @property
    def control(self) -> str:
        return self.conditions[CONTROL_ROW]

    @property
    def condition(self) -> str:
        """The condition that an adapter was trained for."""
        return self.conditions[-1]

    def row(self, name: str) -> int:
        """Return the embedding row of a condition; raise ModelError where the model was not trained on it."""
        if name not in self.conditions:
            raise ModelError(
                f'the {self.kind} knows {list(self.conditions[1:])}, not "{name}". Fine-tune an adapter for it.'
            )
        return self.conditions.index(name)


@dataclass(frozen=True)
class Model:
    """What models one condition: a denoiser, the condition's row in its embedding, and the card of the weights."""

    denoiser: Denoiser
    row: int
    card: ModelCard


@dataclass(frozen=True)
class Attached:
    """A base, the adapters over it of which `switch` puts some in force, and the card of each."""

    base: "Base"
    network: AdaptedNetwork
    cards: Mapping[Condition, ModelCard]


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


def build_schedule(config: ScheduleConfig) -> Schedule:
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


def base_rows(conditions: Sequence[str]) -> tuple[str, ...]:
    """Return the embedding rows of a base: unconditional, the conditions (control first), and one that an adapter takes."""
    return ("", *conditions, SPARE)


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


def reads_unseen(network: nn.Module) -> bool:
    """Say whether a network reads compounds' names or SMILES, so that one that it was not trained on can be asked for."""
    return (
        isinstance(network, ConditionedBackbone) and network.conditioner is not None and network.conditioner.reads_texts
    )


def with_unseen(base: Base, condition: Condition) -> Base:
    """Return the base with one more row, for a condition that it was not trained on; the base itself is left as it is.

    Raises
    ------
    ModelError : the base does not read names or SMILES. ConfigError : the compound's SMILES is not among those of the base.
    """
    if not reads_unseen(base.network):
        raise ModelError(
            f'the base was not trained on "{condition.name}" and does not read names. Fine-tune an adapter for it, or pretrain with '
            "network.conditioning.compound: characters or fingerprint."
        )
    card = base.card.model_copy(update={"conditions": (*base.card.conditions, condition.name)})
    network: Any = copy.deepcopy(base.network)
    network.conditioner.tokens.describe(condition_table(card))
    return Base(network, card, base.sha256, base.schedule)


def _with_spare_row(base: Base, condition: str) -> nn.Module:
    """Return a copy of the base's network in which the row that an adapter takes has its condition's dose and text."""
    network = copy.deepcopy(base.network)
    _describe_spare_row(network, base, condition)
    return network


def _describe_spare_row(network: Any, base: Base, condition: str) -> None:
    if isinstance(network, ConditionedBackbone) and network.conditioner is not None:
        card = base.card.model_copy(update={"conditions": (*base.card.conditions[:-1], condition)})
        network.conditioner.tokens.describe(condition_table(card))


def check_fit(card: ModelCard, info: StoreInfo) -> None:
    """Raise ModelError where a model and a store differ in channels, their order, size, or the control's name."""
    if card.channels != info.channels or card.size_px != info.size_px:
        raise ModelError(
            f"the model was trained on {card.size_px} px of {list(card.channels)}, but {info.path} holds {info.size_px} px of "
            f"{list(info.channels)}. Prepare the store with the model's size_px and channels."
        )
    if card.control != info.control:
        raise ModelError(
            f'the model was trained on the control "{card.control}", but the control of {info.path} is "{info.control}". '
            f"If they are the same, set control_name: {card.control} in the manifest and prepare the store again."
        )


def publish_base(run: RunDir, network: nn.Module, *, ema: Mapping[str, Tensor], card: ModelCard) -> None:
    """Publish the averaged weights as a diffusers folder with the card beside it."""
    averaged = copy.deepcopy(network)
    require_same_keys(dict(ema), dict(lora.trainable(averaged)), source="averaged weights")
    averaged.load_state_dict(dict(ema), strict=False)  # buffers and what is frozen are not averaged
    with publish_directory(run.model, manifest={"kind": card.kind}) as directory:
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
    network = _with_spare_row(base, condition)
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
        loaded = library.load_adapter(_with_spare_row(base, condition), directory, base_sha256=base.sha256)
        given = dict(loaded.named_parameters())
        lora.copy_weights(model, {name: given[name] for name in lora.trainable(model) if name in given})
    return model


def model_directory(path: Path, kind: Literal["base", "adapter", "classifier"] | None = None) -> Path:
    """Return the directory of weights to start from: a run's finished model, or one that was given itself.

    Raises
    ------
    CheckpointError : there is none, it is a file, or a file in it is missing or was changed since it was published.
    ModelError : it is a model of another kind.
    """
    if path.is_file():
        raise CheckpointError(
            f"{path}: is a file; give a run or model directory (safetensors only, pickles are never opened)."
        )
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory. Give a run that ended, or a model directory.")
    run = RunDir(path)
    if run.model.is_dir() or run.checkpoints.is_dir():
        path = run.require_model()
    elif (path / MANIFEST).is_file():
        require_intact(path)
    found = read_manifest(path).get("kind") if (path / MANIFEST).is_file() else None
    if kind is not None and found not in (kind, None):
        raise ModelError(f"{path}: holds a model of kind {found}, expected {kind}. Give the run that trained one.")
    return path


def starting_weights(init_from: Path | None, kind: Literal["base", "adapter", "classifier"]) -> dict[str, Path]:
    """Return the file of weights that a training starts from as an input `init_from`, to be hashed; nothing where it starts afresh."""
    if init_from is None:
        return {}
    files = {"base": f"unet/{UNET_WEIGHTS}", "adapter": library.WEIGHTS, "classifier": CLASSIFIER_WEIGHTS}
    return {"init_from": model_directory(init_from, kind) / files[kind]}


def inherited_plates(init_from: Path | None) -> tuple[str, ...]:
    """Return the plates that the weights to start from have seen, as far as they came with a card that says so."""
    card = None if init_from is None else model_directory(init_from) / CARD
    if card is None or not card.is_file():
        return ()
    try:
        return tuple(json.loads(card.read_text(encoding="utf-8"))["plates"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{card}: does not say which plates it was trained on ({error}).") from None


def publish_adapter(run: RunDir, model: nn.Module, *, ema: Mapping[str, Tensor], card: ModelCard) -> None:
    """Publish the averaged adapter as a peft directory, bound to its base by hash."""
    assert card.base_sha256 is not None
    with publish_directory(run.model, manifest={"kind": card.kind, "base_sha256": card.base_sha256}) as directory:
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
    network = library.load_adapter(_with_spare_row(base, card.condition), directory, base_sha256=base.sha256)
    return base.denoiser(library.merge(network).eval().requires_grad_(False)), card


def build_sampler(solver: SolverConfig) -> Sampler:
    """Build what turns noise into images."""
    return SAMPLERS[solver.method](solver)


def build_inversion(solver: SolverConfig) -> Inversion:
    """Build what turns images into noise: by first order for DDIM, whose sampling it is to undo."""
    order = 1 if solver.method == "ddim" else solver.order
    return Inversion(solver.steps, order, solver.grid, solver.fixed_point, solver.start_noise)


def guided(denoiser: Denoiser, solver: SolverConfig, card: ModelCard) -> Denoiser:
    """Wrap a denoiser for sampling: in guidance where the scale asks for it, and in a threshold around all of it.

    From the unconditional row it sharpens a condition against all that was trained together; from the control's row it goes further
    along the condition's own effect, which an adapter that was trained briefly falls short of.
    """
    result = _guidance(denoiser, solver, card)
    if solver.guidance_interval is not None:
        low, high = solver.guidance_interval
        result = GuidanceInterval(result, denoiser, low=low, high=high)
    if solver.threshold == "clip":
        return Clipping(result)
    if solver.threshold == "dynamic":
        return DynamicThresholding(result, percentile=solver.threshold_percentile, largest=solver.threshold_largest)
    return result


def _guidance(denoiser: Denoiser, solver: SolverConfig, card: ModelCard) -> Denoiser:
    if solver.guidance_scale == 1.0:
        return denoiser
    if solver.guidance_by_distance:
        return DistanceGuidance(denoiser, _scales_of_rows(denoiser, solver.guidance_scale, card), CONTROL_ROW)
    row = CONTROL_ROW if solver.guidance_from == "control" else NULL_ROW
    return ClassifierFreeGuidance(
        denoiser, scale=solver.guidance_scale, null_label=row, rescale=solver.guidance_rescale
    )


def _scales_of_rows(denoiser: Denoiser, scale: float, card: ModelCard) -> Tensor:
    """Return a guidance scale for every row of the embedding, 1 for the rows that stand for no condition."""
    embedding = condition_rows(denoiser)
    if embedding is None:
        raise ModelError("guidance_by_distance: the network has no table of condition embeddings. Set it to false.")
    rows = [row for row, name in enumerate(card.conditions) if name not in ("", SPARE)]
    scales = torch.ones(len(card.conditions), device=embedding.device)
    near = scales_by_distance(embedding[rows], scale, reference=rows.index(CONTROL_ROW))
    scales[rows] = near.to(scales)
    return scales


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
        if condition not in models and reads_unseen(base.network):
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
    if reads_unseen(attached.base.network):
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
        _describe_spare_row(network.network, base, condition.name)
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


def build_translator(
    method: str,
    models: Mapping[Condition, Model],
    *,
    source: Condition,
    solver: SolverConfig,
    x_T: Literal["inverted", "fresh"],
) -> Translator:
    """Build a translator from the source's model to every condition that has one.

    Raises
    ------
    ConditionError : nothing models the source.
    """
    if source not in models:
        raise ConditionError(
            f'no model of the source "{source.name}" was given: pass its adapter, from `cellbridge finetune --condition '
            f'"{source.name}"`, as --adapter as well.{did_you_mean(source.name, [c.name for c in models])}'
        )
    return TRANSLATORS[method](
        models[source].denoiser,
        models[source].row,
        {condition: (guided(model.denoiser, solver, model.card), model.row) for condition, model in models.items()},
        inversion=build_inversion(solver),
        sampler=build_sampler(solver),
        x_T=x_T,
    )


def load_classifier(path: Path, *, device: torch.device | str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """Open a `train-classifier` run's model and its card."""
    directory = RunDir(path).require_model()
    classifier, card = load_classifier_directory(directory)
    return classifier.to(device).eval(), card


def read_card(directory: Path, *, kind: str) -> ModelCard:
    """Read and check a model directory's card."""
    try:
        values = json.loads((directory / CARD).read_text(encoding="utf-8"))
        card = ModelCard.model_validate(values)
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: holds no {CARD}; it was not made by cellbridge.") from None
    except (ValueError, ValidationError) as error:
        raise ModelError(
            f"{directory / CARD}: is not a base's or an adapter's card ({str(error).splitlines()[0]})."
        ) from None
    if card.kind != kind:
        raise ModelError(f"{directory}: holds a model of kind {card.kind!r}, expected {kind!r}.")
    return card
