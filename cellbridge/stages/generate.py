"""`cellbridge generate --condition X --n N`: new cells of a condition, out of fresh noise, as a store of cells."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from cellbridge import processes
from cellbridge.conditions import Condition, resolve, resolve_or_read, written
from cellbridge.config import SolverConfig, XTOrigin, prior_run
from cellbridge.data.store import StoreInfo, describe
from cellbridge.errors import ConditionError, ConfigError, StoreError, did_you_mean
from cellbridge.modelled import adapted_conditions, model_card, modelled_conditions
from cellbridge.outputs import require_apart, require_directory
from cellbridge.progress import bar
from cellbridge.runs import RunDir, code_version, fingerprint, is_taken
from cellbridge.settings import Section, Seed

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from cellbridge.assembly import Base, Model
    from cellbridge.data.regrouping import Regrouping
    from cellbridge.diffusion.denoiser import Denoiser
    from cellbridge.diffusion.prior import XTPrior

_SHARE = re.compile(r"\s*(.+?)\s*:\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(?:,|$)")


class Config(Section):
    """Settings of `generate`."""

    base: Path
    adapters: tuple[Path, ...] = ()
    conditions: tuple[str, ...] = Field(min_length=1)
    """The conditions to generate; a blend takes one, which names what it gives."""
    n: PositiveInt
    """Cells of each condition."""
    store: Path | None = None
    """The store whose intensity maps turn images into counts; None is the one that the base was trained on."""
    plate: str | None = None
    """The plate whose map it is; None is the first plate of the store that the base was trained on. The network is not told it."""
    blend: dict[str, float] | Literal["doses"] | None = None
    """Shares of adapters, `A:0.3,B:0.7`; what is missing to 1 is the control. `doses` blends, for each condition that is not
    modelled itself, the two adapters of its compound between whose doses it lies, linearly in the logarithm of the dose."""
    unseen: bool = False
    """Take a condition that neither the store nor the models know for one that the base is to read the name, SMILES or (of a compound
    that it was trained on) dose of; otherwise it is taken for a slip of the pen."""
    smiles: dict[str, str] = Field(default_factory=dict)
    """SMILES of unseen compounds by name, for a base that reads SMILES."""
    solver: SolverConfig = SolverConfig()
    x_T: XTOrigin = "fresh"
    """`fresh`: N(0, I); `prior:DIR`: the noise that each condition's cells really come from, as a run of `fit-prior` found it."""
    shared_noise: bool = False
    """Start cell i of every condition from the same noise, to look at the same cells under several conditions or doses."""
    seed: Seed = 0
    batch_size: PositiveInt = 64
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: str = "auto"
    overwrite: bool = False
    """Replace `out`, if it is a store that `generate` made, and the picture beside it."""

    @field_validator("blend", mode="before")
    @classmethod
    def _read_shares(cls, value: Any) -> Any:
        if not isinstance(value, str) or value == "doses":
            return value
        found = list(_SHARE.finditer(value))
        if not found or "".join(match[0] for match in found) != value:
            raise ValueError("expected doses, or adapters with their shares, such as taxol@1:0.3,taxol@10:0.7")
        names = [match[1] for match in found]
        if len(set(names)) < len(names):
            raise ValueError("names an adapter twice; give each one share")
        return {match[1]: float(match[2]) for match in found}

    @field_validator("x_T")
    @classmethod
    def _nothing_to_invert(cls, value: str) -> str:
        if value == "inverted":
            raise ValueError("new cells have no image to invert; use fresh, prior:DIR, or `cellbridge translate`")
        return value

    @model_validator(mode="after")
    def _blend_has_one_name(self) -> "Config":
        if isinstance(self.blend, dict) and len(self.conditions) != 1:
            raise ValueError(
                f"blend gives one result, found conditions {list(self.conditions)}; name it by one condition"
            )
        return self


Recipes = dict[Condition, dict[Condition, float] | None]
"""Of each condition the shares of the adapters that are blended for it; None leaves the choice to its own adapter or the base."""


def run(config: Config, *, out: Path) -> dict[str, Any]:
    """Generate cells, and write a store whose rows are (condition, number), with a picture beside it (`OUT.png`).

    Each image has a seed of its own, so it depends neither on the batch size, nor on how many are asked for, nor on how many
    processes share the batches. Conditions come one after another, so that each process swaps adapters once per condition. A generated
    cell has no plate; counts need a map, which is that of `plate`, under whose name the store lists the cells.

    Raises
    ------
    ConditionError : a condition that neither the models nor the store know, or that nothing models.
    ModelError : an adapter that belongs to another base, or models that do not fit the store.
    StoreError, RunError : `out` is taken, or is not apart from the inputs; or the plate is not in the store.
    """
    reference = _reference(config)
    _check_out(config, reference, out)
    info = describe(reference)
    card, adapters = model_card(config.base), [model_card(path) for path in config.adapters]
    plate = _plate(config, info, card["plates"])
    adapted, modelled = adapted_conditions(adapters), modelled_conditions(card, adapters)
    known = list(dict.fromkeys([*info.conditions, *modelled]))
    recipes = _recipes(config, known, modelled, adapted, aliases=info.aliases)

    from cellbridge import assembly
    from cellbridge.data.store import open_store
    from cellbridge.figures import save_generated
    from cellbridge.runtime import pick_device

    device = pick_device(config.device)
    base = assembly.with_smiles(assembly.load_base(config.base, device=device), config.smiles)
    assembly.check_fit(base.card, info)
    models = _Models(config, base, recipes)
    results = _generated(config, models, info, plate=plate, device=device)
    if not processes.is_main():
        for _ in results:
            pass
        return {}
    with _kept(results, info, out=out) as kept:
        _write(config, kept, info, models, out=out, plate=plate, reference=reference)
    save_generated(_picture(out), open_store(out), open_store(reference), plate=plate)
    return {
        "store": str(out),
        "picture": str(_picture(out)),
        "cells": config.n * len(recipes),
        "conditions": [condition.name for condition in recipes],
        "plate": plate,
        "share clipped": round(kept.share_clipped, 6),
    }


def _reference(config: Config) -> Path:
    """Return the store that says how images become counts."""
    if config.store is not None:
        return config.store
    provenance = RunDir(config.base).provenance
    try:
        found = json.loads(provenance.read_text(encoding="utf-8"))["inputs"]["store"]
        path, sha256 = Path(found["path"]), found["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{provenance}: does not say which store the base was trained on. Give --store.") from None
    if not path.exists() or fingerprint(path) != sha256:
        raise ConfigError(
            f"{path}: is not there, or no longer the store that {config.base} was trained on. Give --store."
        )
    return path


def _picture(out: Path) -> Path:
    return out.with_name(f"{out.stem}.png")


def _check_out(config: Config, reference: Path, out: Path) -> None:
    prior = prior_run(config.x_T)
    others = (*config.adapters, *config.solver.guides.values(), *([] if prior is None else [prior]))
    require_apart(out, (reference, config.base, *others))
    require_directory(out.parent)
    if not config.overwrite:
        for path in (out, _picture(out)):
            if is_taken(path):
                raise StoreError(f"{path}: exists already. Remove it, choose another name, or set overwrite=true.")
        return
    try:
        replaceable = not is_taken(out) or "generated" in describe(out).attributes
    except StoreError:
        replaceable = False
    if not replaceable:
        raise StoreError(
            f"{out}: is not a store that generate made, and overwrite=true replaces nothing else. Remove it, or choose another name."
        )


def _plate(config: Config, info: StoreInfo, trained: list[str]) -> str:
    if config.plate is not None:
        if config.plate not in info.plates:
            hint = did_you_mean(config.plate, info.plates)
            raise StoreError(f'{info.path}: plate "{config.plate}" is not in the store.{hint}')
        return config.plate
    seen = [plate for plate in info.plates if plate in trained]
    if not seen:
        raise StoreError(
            f"{info.path}: holds no plate that the base was trained on. Choose one of {list(info.plates)} with --plate."
        )
    return seen[0]


def _recipes(
    config: Config,
    known: list[Condition],
    modelled: list[Condition],
    adapted: list[Condition],
    *,
    aliases: Mapping[str, str],
) -> Recipes:
    if isinstance(config.blend, dict):
        shares = {resolve(text, adapted, aliases=aliases): share for text, share in config.blend.items()}
        if len(shares) < len(config.blend):
            raise ConditionError(f"blend = {config.blend}: names an adapter twice. Give each one share.")
        return {written(config.conditions[0], known, aliases=aliases): shares}
    recipes: Recipes = {}
    for text in config.conditions:
        if config.blend == "doses" and not _is_one_of(text, modelled, aliases=aliases):
            condition, shares = _between(text, adapted, aliases=aliases)
            recipes[condition] = shares
        else:
            recipes[resolve_or_read(text, known, aliases=aliases, unseen=config.unseen)] = None
    return recipes


def _is_one_of(text: str, conditions: list[Condition], *, aliases: Mapping[str, str]) -> bool:
    try:
        resolve(text, conditions, aliases=aliases)
    except ConditionError:
        return False
    return True


def _between(
    text: str, adapted: list[Condition], *, aliases: Mapping[str, str]
) -> tuple[Condition, dict[Condition, float]]:
    """Return a condition and the shares of the adapters whose doses it lies between."""
    from cellbridge.adapters.doses import dose_shares

    wanted = Condition.parse(text)
    compounds = dict.fromkeys(Condition(condition.compound) for condition in adapted)
    compound = resolve(wanted.compound, compounds, aliases=aliases).compound
    wanted = Condition(compound, wanted.dose_um)
    by_dose = {c.dose_um: c for c in adapted if c.compound == compound and c.dose_um is not None}
    shares = dose_shares(wanted.dose_um, list(by_dose))
    return wanted, {by_dose[dose]: share for dose, share in shares.items()}


class _Models:
    """What models each condition; one that nothing models is told before anything is generated."""

    def __init__(self, config: Config, base: "Base", recipes: Recipes):
        from cellbridge import assembly

        self.base, self.recipes, self._solver = base, recipes, config.solver
        self._attached = assembly.attach_adapters(base, config.adapters)
        self._sampler = assembly.build_sampler(config.solver)
        self._guides = assembly.load_guides(config.solver, base)
        self._current: tuple[Condition, Model, Denoiser] | None = None
        cards = {c: assembly.card_of(self._attached, c, shares=shares) for c, shares in recipes.items()}
        self._guides.require(condition.name for condition in recipes)
        own = {"base": base.card.plates, **{c.name: card.plates for c, card in cards.items()}}
        self._priors = _priors(config, base, recipes)
        kinds = {prior.kind for prior in self._priors.values()}
        self.of_prior = {"prior_kind": kinds.pop()} if kinds else {}
        given = prior_run(config.x_T)
        fitted = {} if given is None else assembly.prior_plates(given, recipes)
        own |= {name: tuple(sorted({*own[name], *plates})) for name, plates in fitted.items()}
        self.plates = own | self._guides.plates
        self.names = {c: _model_name(cards[c].kind, shares) for c, shares in recipes.items()}

    def of(self, condition: Condition) -> "tuple[Model, Denoiser]":
        """Return a condition's model and its guided denoiser; adapters are swapped where the condition is another than before."""
        from cellbridge import assembly

        if self._current is None or self._current[0] != condition:
            model = assembly.switch(self._attached, condition, shares=self.recipes[condition])
            self._current = (condition, model, assembly.guided_model(model, self._solver, self._guides))
        return self._current[1:]

    def noise(self, condition: Condition, seeds: "torch.Tensor", shape: tuple[int, ...]) -> "torch.Tensor":
        """Return x_T of each seed: N(0, I), or by the condition's prior."""
        from cellbridge.runtime import noise_per_image

        if self._priors:
            return self._priors[condition].sample(seeds, shape)
        return noise_per_image(seeds, shape, purpose="x_T")

    def sample(self, condition: Condition, noise: "torch.Tensor", seeds: "torch.Tensor") -> "torch.Tensor":
        """Return the images that noise becomes under a condition."""
        import torch

        model, denoiser = self.of(condition)
        labels = torch.full((len(noise),), model.row, dtype=torch.int64, device=noise.device)
        return self._sampler.sample(denoiser, noise, labels, seeds=seeds)


def _priors(config: Config, base: "Base", recipes: Recipes) -> "dict[Condition, XTPrior]":
    """Return the prior of each condition; none where noise is fresh."""
    from cellbridge import assembly

    prior = prior_run(config.x_T)
    if prior is None:
        return {}
    blended = [condition.name for condition, shares in recipes.items() if shares is not None]
    if blended:
        raise ConfigError(
            f"x_T = {config.x_T}: a prior is of one model, and {', '.join(blended)} is a blend. Use x_T=fresh."
        )
    return assembly.load_priors(prior, base=base, models=assembly.model_hashes(base, config.adapters, recipes))


def _model_name(kind: str, shares: Mapping[Condition, float] | None) -> str:
    return kind if shares is None else f"blend {', '.join(f'{c.name}:{share:.6g}' for c, share in shares.items())}"


def _generated(
    config: Config, models: _Models, info: StoreInfo, *, plate: str, device: "torch.device"
) -> "Iterator[tuple[torch.Tensor, ...]]":
    """Yield, on the main process, counts (cell, channel, y, x) and how many were clipped, condition after condition."""
    import torch

    from cellbridge.runtime import autocast, pick_precision

    dtype = pick_precision(config.precision, device)
    maps, kept = info.intensity_maps(), torch.uint8 if info.full_scale <= 255 else torch.uint16
    shape = (len(info.channels), info.size_px, info.size_px)

    def work(part: tuple[Condition, range]) -> "tuple[torch.Tensor, ...]":
        condition, numbers = part
        models.of(condition)  # outside of autocast: weights are merged in their own precision
        seeds = torch.tensor([_seed(config, condition, number) for number in numbers], device=device)
        with torch.inference_mode(), autocast(device, dtype):
            noise = models.noise(condition, seeds, shape)
            images = models.sample(condition, noise, seeds).float().cpu()
        counts, share = maps.to_counts(images, [plate] * len(images))
        return counts.to(kept), torch.tensor(round(share * counts.numel()))

    starts = range(0, config.n, config.batch_size)
    numbers = [range(start, min(start + config.batch_size, config.n)) for start in starts]
    parts = [(condition, some) for condition in models.recipes for some in numbers]
    with bar("generate", total=config.n * len(models.recipes), unit="cells") as shown:
        for result in processes.in_order(parts, work):
            yield result
            shown.advance(len(result[0]))


def _seed(config: Config, condition: Condition, number: int) -> int:
    from cellbridge.runtime import derive_seed

    return derive_seed("generate", config.seed, "" if config.shared_noise else condition.name, number)


@contextmanager
def _kept(results: "Iterator[tuple[torch.Tensor, ...]]", info: StoreInfo, *, out: Path) -> "Iterator[Regrouping]":
    """Generate everything, keeping the counts on disk beside `out`, for the block."""
    from cellbridge.data.regrouping import Regrouping

    shape = (len(info.channels), info.size_px, info.size_px)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder,
        Regrouping(Path(folder), targets=1, image_shape=shape, full_scale=info.full_scale) as kept,
    ):
        for counts, clipped in results:
            kept.add(counts.unsqueeze(0), clipped=int(clipped))
        yield kept


def _write(
    config: Config, kept: "Regrouping", info: StoreInfo, models: _Models, *, out: Path, plate: str, reference: Path
) -> None:
    from cellbridge.data.store import write_store

    write_store(
        out,
        obs=_obs(config, info, models, plate=plate),
        counts=kept.counts(),
        channels=info.channels,
        full_scale=info.full_scale,
        size_px=info.size_px,
        pixel_um=info.pixel_um,
        control=info.control,
        intensity=info.intensity_maps(),
        attributes={
            "aliases": dict(info.aliases),
            "made_by": code_version(),
            "config": config.model_dump(mode="json"),
            "inputs": {
                "store": fingerprint(reference),
                "base": models.base.sha256,
                "adapters": [fingerprint(path) for path in config.adapters],
                **{name: fingerprint(path) for name, path in config.solver.guides.items()},
                **({} if (prior := prior_run(config.x_T)) is None else {"prior": fingerprint(prior)}),
            },
            "trained_on": models.plates,
            **models.of_prior,
            "generated": {"per_condition": config.n, "plate": plate, "share_clipped": kept.share_clipped},
        },
        overwrite=config.overwrite,
    )


def _obs(config: Config, info: StoreInfo, models: _Models, *, plate: str) -> "pd.DataFrame":
    import pandas as pd

    rows = [
        {
            "Metadata_Cell": f"generated-{config.seed}-{condition.name}-{number}",
            "Metadata_Plate": plate,
            "Metadata_Well": "",
            "Metadata_Site": "",
            "Metadata_Compound": condition.compound,
            "Metadata_Concentration": condition.dose,
            "Metadata_pert_type": "negcon" if condition.name == info.control else "trt",
            "Metadata_Split": "",
            "Metadata_Origin": "generated",
            "Metadata_TargetCondition": condition.name,
            "Metadata_Model": model,
            "Metadata_Seed": str(_seed(config, condition, number)),
        }
        for condition, model in models.names.items()
        for number in range(config.n)
    ]
    return pd.DataFrame(rows)
