"""The sections of a configuration that describe a part (network, schedule, adapter, training …), from which `assembly` rebuilds it; a stage composes them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PositiveInt,
    model_validator,
)

from cellbridge.errors import ConfigError
from cellbridge.settings import Section, Seed


class ConditioningConfig(Section):
    """How the network is told the condition."""

    scheme: Literal["added", "one_hot", "attend_then_project", "concatenated", "late", "cross_attention"] = "added"
    """`added` to the time embedding; `one_hot`: the same through a perceptron; `attend_then_project`: of tokens that attend to one another;
    `concatenated` to it; `late`: from the middle of the network on; `cross_attention`: the image attends to the tokens."""
    tokens: tuple[Literal["compound", "dose", "plate", "time"], ...] | None = None
    """What a condition consists of; by default the condition as a whole where it is `added`, and compound and dose apart elsewhere."""
    compound: Literal["learned", "characters", "fingerprint"] = "learned"
    """`characters` and `fingerprint` (hashed n-grams) read the compound's text, so that one that was not trained on can be asked for."""
    text: Literal["name", "smiles"] = "name"
    """What is read of a compound."""
    smiles: dict[str, str] = Field(default_factory=dict)
    """SMILES of each compound by name, the control included, for `text: smiles`."""
    text_length: PositiveInt = 128
    """Bytes of the longest text that `characters` reads."""
    width: PositiveInt = 64
    """Of a token."""
    token_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the images for which each token is hidden in training, which trains what stands for an unknown compound, dose or plate."""

    @property
    def parts(self) -> tuple[Literal["compound", "dose", "plate", "time"], ...]:
        """The tokens, by the scheme's default where none are named."""
        if self.tokens is not None:
            return self.tokens
        return ("compound",) if self.scheme == "added" else ("compound", "dose")

    @model_validator(mode="after")
    def _fits_together(self) -> "ConditioningConfig":
        parts = self.parts
        if "compound" not in parts or len(set(parts)) < len(parts):
            raise ValueError(f"tokens {list(parts)}: name compound, and each token once")
        if self.scheme == "cross_attention" and len(parts) == 1 and self.compound != "characters":
            raise ValueError("cross_attention to one token adds a constant; add dose, plate or time to tokens")
        if "time" in parts and self.scheme not in ("cross_attention", "attend_then_project"):
            raise ValueError(
                f"the time stands beside the vector of scheme {self.scheme} already; leave it out of tokens"
            )
        if self.scheme == "one_hot" and self.compound != "learned":
            raise ValueError(f"scheme one_hot numbers its compounds; use compound: learned, not {self.compound}")
        if (self.text == "smiles") != bool(self.smiles):
            raise ValueError("text: smiles and the table smiles need each other; give both, or neither")
        if self.text == "smiles" and self.compound == "learned":
            raise ValueError("smiles are read by compound: characters or fingerprint; set one of them")
        return self


class DitConfig(Section):
    """Size of a diffusion transformer."""

    width: PositiveInt = 128
    depth: PositiveInt = 4
    patch_px: PositiveInt = 2


class NetworkConfig(Section):
    """The backbone over all channels: diffusers' `UNet2DModel`, `UNet2DConditionModel` or `DiTTransformer2DModel`."""

    backbone: Literal["unet", "cross_attention_unet", "dit"] = "unet"
    """`dit` is a `PixArtTransformer2DModel` (a DiT that attends to tokens) where conditioning.scheme is cross_attention."""
    widths: tuple[PositiveInt, ...] = (32, 64, 96)
    layers_per_block: PositiveInt = 1
    attention_levels: tuple[int, ...] = (2,)
    """Resolution levels (0 is the finest) that have attention."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    embedding_std: float = Field(default=0.02, gt=0.0)
    """Initial standard deviation of the condition embedding; PyTorch's own 1.0 drowns the time embedding."""
    initialisation: Literal["default", "xavier", "he"] = "default"
    """Of convolutions and linear maps; `default` is diffusers' own."""
    zero_out: bool = False
    """Start every residual block as the identity."""
    dit: DitConfig = DitConfig()
    conditioning: ConditioningConfig = ConditioningConfig()

    @model_validator(mode="after")
    def _backbone_has_the_scheme(self) -> "NetworkConfig":
        possible = _SCHEMES[self.backbone]
        if self.conditioning.scheme not in possible:
            raise ValueError(
                f"backbone {self.backbone} has no conditioning.scheme {self.conditioning.scheme}; use {', '.join(possible)}, or "
                f"backbone {' or '.join(name for name, schemes in _SCHEMES.items() if self.conditioning.scheme in schemes)}"
            )
        if (
            self.backbone == "dit"
            and "time" in self.conditioning.parts
            and self.conditioning.scheme != "cross_attention"
        ):
            raise ValueError("a dit's vector is published per condition, for all times; leave time out of tokens")
        if self.conditioning.scheme == "cross_attention" and self.backbone != "dit" and not self.attention_levels:
            raise ValueError("cross_attention needs a level that attends; name one in attention_levels")
        return self

    def louder(self) -> "NetworkConfig":
        """Return the same with conditions as loud at the start as a fresh time embedding, unless their loudness was chosen.

        For short trainings in which the condition is all that tells what is asked: at a base's 0.02 a flow of 500 steps hardly heard it.
        """
        chosen = self.embedding_std != type(self)().embedding_std
        return self if chosen else self.model_copy(update={"embedding_std": _LOUD_STD})


_LOUD_STD = 0.15
"""Measured: that of a fresh time embedding."""

_SCHEMES: dict[str, tuple[str, ...]] = {
    "unet": ("added", "one_hot", "attend_then_project", "late"),
    "cross_attention_unet": ("added", "one_hot", "attend_then_project", "concatenated", "cross_attention"),
    "dit": ("added", "one_hot", "attend_then_project", "cross_attention"),
}


class NoiseConfig(Section):
    """A noise schedule: how much noise an image has at each time."""

    kind: Literal["cosine", "linear", "scaled_linear"] = "cosine"
    steps: PositiveInt = 1000
    beta_start: float | None = None
    """First beta at 1000 steps: by default 1e-4 (linear) or 8.5e-4 (scaled_linear); other numbers of steps scale it."""
    beta_end: float | None = None
    """Last beta at 1000 steps: by default 2e-2 (linear) or 1.2e-2 (scaled_linear)."""
    zero_terminal_snr: bool = False
    """Leave nothing of the image at the last step, so that sampling starts where training ended; needs prediction v or x_0."""


class ScheduleConfig(NoiseConfig):
    """The noise schedule and what the network predicts."""

    prediction: Literal["v", "epsilon", "x_0"] = "v"
    variance: Literal["fixed", "learned_range"] = "fixed"
    """`learned_range`: the network gives twice the channels, the second half saying how noisy each reverse step is; needs
    objective.kind hybrid or vlb."""

    @model_validator(mode="after")
    def _epsilon_needs_signal(self) -> "ScheduleConfig":
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "epsilon says nothing of the image where zero_terminal_snr leaves none; use prediction v or x_0"
            )
        return self


class ObjectiveConfig(Section):
    """What the training loss is, and how its times are drawn."""

    kind: Literal["simple", "vlb", "hybrid"] = "simple"
    """`simple`: squared error of the prediction. `vlb`: the variational bound in bits per dimension. `hybrid`: squared error, and the bound
    for the variances alone; needs schedule.variance: learned_range."""
    min_snr_gamma: float | None = Field(default=None, gt=0.0)
    """Weigh the squared error by min(SNR, gamma) in the image (5 in the paper), whatever is predicted."""
    vlb_weight: float = Field(default=1e-3, gt=0.0)
    """Of the bound in `hybrid`."""
    times: Literal["uniform", "importance"] = "uniform"
    """`importance`: draw times by how large their terms of the bound have been; for `vlb`, whose terms differ by orders of magnitude."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ObjectiveConfig":
        if self.min_snr_gamma is not None and self.kind == "vlb":
            raise ValueError(
                "min_snr_gamma weighs the squared error, which kind vlb has none of; use kind simple or hybrid"
            )
        if self.times == "importance" and self.kind != "vlb":
            raise ValueError("importance-sampled times are for kind vlb; use times: uniform")
        return self

    def require_fit(self, schedule: ScheduleConfig) -> None:
        """Raise ConfigError where the network's variance would not be trained, or is to be trained and is not there."""
        if self.kind == "hybrid" and schedule.variance == "fixed":
            raise ConfigError(
                "objective.kind = hybrid trains the network's variance, but schedule.variance is fixed. "
                "Set schedule.variance: learned_range, or objective.kind: simple."
            )
        if self.kind == "simple" and schedule.variance == "learned_range":
            raise ConfigError(
                "schedule.variance = learned_range, but objective.kind = simple never trains it. Set objective.kind: hybrid."
            )


class SolverConfig(Section):
    """How noise becomes an image, and an image noise."""

    steps: PositiveInt = 25
    method: Literal["flow", "ddim", "ddpm", "pndm", "dpm++"] = "flow"
    """`flow` solves the probability-flow ODE by `order`; `ddim`, `pndm` and `dpm++` (2M) take one network call a step; `ddpm`, and `ddim`
    with `eta`, add noise on the way. Inversion follows the ODE, for ddim to first order, else by `order`."""
    order: Literal[1, 2] = 2
    """1: DDIM, one network call a step; 2: midpoint (DPM-Solver-2), two calls a step."""
    grid: Literal["uniform", "quadratic", "log_snr"] = "quadratic"
    """Where the steps lie in t; `quadratic` is dense at small t, where dark backgrounds need it, and the default of ddim and ddpm too,
    whose diffusers namesakes step uniformly: for their numbers set `uniform`, which is their trailing spacing. pndm needs `uniform`."""
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    """Noise of ddim's steps: 0 none, 1 as much as ddpm's."""
    variance: Literal["small", "large", "learned"] = "small"
    """Of ddpm's steps; `learned` needs a base of schedule.variance: learned_range."""
    runge_kutta: bool = False
    """Start pndm by three steps of four calls each."""
    fixed_point: int = Field(default=0, ge=0)
    """Iterations that make inversion by ddim (or flow of order 1) the exact inverse of its sampling; one call a step each."""
    start_noise: bool = False
    """Start inversion by adding the noise of t = 0, for backgrounds flatter than it."""
    guidance_scale: float = Field(default=1.0, ge=0.0)
    """1 is the conditional model, and costs one network call; above 1 goes further along the condition's effect."""
    guidance_from: Literal["unconditional", "control"] = "control"
    """What the effect is measured from: the same network asked for no condition, or for the control."""
    guidance_interval: tuple[float, float] | None = None
    """First and last t that are guided; None guides all."""
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of each channel's contrast that is taken back to that of the unguided estimate; 0.7 in the paper."""
    guidance_by_distance: bool = False
    """Let the scale of each condition grow with its embedding's distance from the control's; `guidance_scale` is that of the mean."""
    weaker: Path | None = None
    """Measure the effect from a weaker self in place of `guidance_from`: the run of a smaller or less trained base or adapter, a
    checkpoint of one (`RUN/checkpoints/step-…`), or a snapshot of its averages (`RUN/averages/step-….safetensors`)."""
    classifier: Path | None = None
    """Follow the gradient of a classifier of noisy images as well: a run of `train-classifier` with a section `noise`."""
    classifier_scale: float = Field(default=1.0, gt=0.0)
    """Of the classifier's gradient; about 1 over a conditional model, and up to 10 over the unconditional one (guidance_scale 0 from
    `unconditional`)."""
    threshold: Literal["none", "clip", "dynamic"] = "none"
    """Keep estimates of the image in [-1, 1], in sampling only: clipped, or scaled down by each channel's own percentile."""
    threshold_percentile: float = Field(default=0.995, gt=0.0, lt=1.0)
    threshold_largest: float = Field(default=2.0, gt=1.0)
    """The most that a channel is scaled down by."""

    @property
    def guides(self) -> dict[str, Path]:
        """The other models that guide, by setting."""
        given = {"weaker": self.weaker, "classifier": self.classifier}
        return {name: path for name, path in given.items() if path is not None}

    @model_validator(mode="after")
    def _method_has_the_setting(self) -> "SolverConfig":
        for key, method in (("order", "flow"), ("eta", "ddim"), ("variance", "ddpm"), ("runge_kutta", "pndm")):
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and self.method != method:
                raise ValueError(f"{key} = {value} is of method {method}, found method {self.method}; leave it out")
        for key in ("threshold_percentile", "threshold_largest"):
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and self.threshold != "dynamic":
                raise ValueError(f"{key} = {value} is of threshold dynamic, found {self.threshold}; leave it out")
        if self.method == "pndm" and self.grid != "uniform":
            raise ValueError(f"method pndm needs equal steps in t, found grid {self.grid}; use grid: uniform")
        return self

    @model_validator(mode="after")
    def _inversion_fits(self) -> "SolverConfig":
        first_order = self.order == 1 or self.method == "ddim"
        if self.fixed_point and not first_order:
            raise ValueError("fixed_point inverts first-order steps; use method ddim, or order 1")
        if self.start_noise and self.grid == "uniform":
            raise ValueError("start_noise starts at t = 0, which grid uniform steps over; use quadratic or log_snr")
        return self

    @model_validator(mode="after")
    def _guidance_fits(self) -> "SolverConfig":
        options = [k for k in ("interval", "rescale", "by_distance") if getattr(self, f"guidance_{k}")]
        if self.classifier is not None:
            options = [k for k in options if k != "interval"]
        if options and self.guidance_scale == 1.0:
            raise ValueError(f"guidance_{options[0]} does nothing at guidance_scale 1; set the scale, or leave it out")
        if self.guidance_by_distance and (self.guidance_from != "control" or self.guidance_rescale):
            raise ValueError(
                "guidance_by_distance is from the control, and is not rescaled; leave the other setting out"
            )
        if self.guidance_interval and self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError("guidance_interval: the first time is after the last; swap them")
        if self.guidance_interval and self.guidance_scale == 0.0:
            raise ValueError(
                "guidance_interval: outside of it the model is the conditional one; leave it out, or scale 0"
            )
        if self.variance == "learned" and (self.guidance_scale != 1.0 or self.classifier is not None):
            raise ValueError("variance learned is of one estimate, and guidance mixes two; use small or large")
        return self

    @model_validator(mode="after")
    def _guides_fit(self) -> "SolverConfig":
        if self.weaker is not None:
            if self.guidance_scale == 1.0:
                raise ValueError("weaker does nothing at guidance_scale 1; set the scale, such as 2, or leave it out")
            others = {
                "guidance_from": self.guidance_from != "control",
                "guidance_by_distance": self.guidance_by_distance,
                "guidance_rescale": bool(self.guidance_rescale),
            }
            for name, given in others.items():
                if given:
                    raise ValueError(f"weaker is what the effect is measured from; leave {name} out")
        if self.classifier is None and self.classifier_scale != 1.0:
            raise ValueError("classifier_scale is that of a classifier; name its run as classifier, or leave it out")
        return self


def _x_T_origin(value: str) -> str:
    if value in ("fresh", "inverted") or (value.startswith("prior:") and value.removeprefix("prior:").strip()):
        return value
    raise ValueError("expected inverted, fresh, or prior:DIR with DIR the run of `cellbridge fit-prior`")


XTOrigin = Annotated[str, AfterValidator(_x_T_origin)]
"""Where x_T comes from: `inverted` from the cells themselves, `fresh` from N(0, I), or `prior:DIR`."""


def prior_run(x_T: str) -> Path | None:
    """Return the run of `fit-prior` that x_T is drawn from; None where it is not."""
    return Path(x_T.removeprefix("prior:").strip()) if x_T.startswith("prior:") else None


class AdapterConfig(Section):
    """LoRA on a frozen base."""

    rank: PositiveInt = 8
    """At 88M parameters, rank 8 trains with 2.2 % of the state of full fine-tuning, and rank 16 with 4.4 %."""
    alpha: float | None = None
    """Scale numerator; the default is the rank, so that the update is B A."""
    targets: tuple[Literal["attention", "convolution", "time"], ...] = Field(
        default=("attention", "convolution", "time"), min_length=1
    )
    """Attention, the convolutions of residual blocks, and the projections of time and condition."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank, so that one alpha serves every rank: name one, since alpha's default of
    the rank would make that scale sqrt(rank)."""
    dora: bool = False
    """Train the length of each output's weights apart from their direction; slower, of most use at low ranks. Needs weights that
    have a length: not of a base whose blocks still are the identity (network.zero_out)."""


class PowerEmaConfig(Section):
    """Averages of the weights with power-function profiles, beside the standard one; any profile can be had of them after training."""

    sigma_rel: tuple[Annotated[float, Field(gt=0.0, lt=0.28)], ...] = ()
    """Relative widths to track, such as [0.05, 0.1]; none turns this off. Each is one more copy of what is trained."""
    snapshot_every: int = Field(default=0, ge=0)
    """Steps between the snapshots that other profiles are made of; 0 keeps none."""
    publish: float | None = Field(default=None, gt=0.0, lt=0.28)
    """Width of the average that the model takes at the end, tracked or made of snapshots; None takes the standard average."""

    @model_validator(mode="after")
    def _can_be_made(self) -> "PowerEmaConfig":
        if not self.sigma_rel and (self.snapshot_every or self.publish is not None):
            raise ValueError("there is nothing to keep or publish; set power_ema.sigma_rel, such as [0.05, 0.1]")
        if self.publish is not None and self.publish not in self.sigma_rel and not self.snapshot_every:
            raise ValueError(
                f"publish = {self.publish:g} is not tracked, and there are no snapshots to make it of; set snapshot_every"
            )
        return self


class TrainingConfig(Section):
    """What the training engine needs to know, whatever the method."""

    steps: PositiveInt = 2000
    batch_size: PositiveInt = 32
    accumulation: PositiveInt = 1
    """Micro-batches per optimiser step; `batch_size` is the global batch of one optimiser step."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    warmup_steps: int = Field(default=50, ge=0)
    decay: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0.0)
    gradient_clip: float = Field(default=1.0, gt=0.0)
    ema_decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    power_ema: PowerEmaConfig = PowerEmaConfig()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 autocast where it pays (a GPU with bf16, or a CPU with native bf16 arithmetic)."""
    compile: Literal["none", "default", "reduce-overhead", "max-autotune", "regional"] = "none"
    """Modes of `torch.compile` on the whole network; `regional` compiles its repeated blocks, once for each shape that they have."""
    channels_last: bool = False
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time, the same numbers."""
    seed: Seed = 0
    log_every: PositiveInt = 20
    checkpoint_every: PositiveInt = 500
    keep_last: PositiveInt = 2
    async_checkpoints: bool = True
    """Write checkpoints beside training, which waits only for the copy in memory."""
    profile: bool = False
    """Write a profiler trace of a few steps under `profile/`, for TensorBoard or Perfetto."""
    trackers: tuple[str, ...] = ()
    """Trackers of accelerate (wandb, mlflow, trackio …) that get every logged value, beside events.jsonl and TensorBoard."""
    sample_every: int = Field(default=0, ge=0)
    """Steps between sample grids; 0 draws one at the end only."""

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainingConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulation {self.accumulation}")
        return self


class BridgeConfig(Section):
    """How a bridge between two samples of vectors is fitted and sampled."""

    solver: Literal["auto", "mixture", "neural"] = "auto"
    """`mixture`: a Gaussian-mixture potential; `neural`: a network on top of one for either direction; `auto`: the better of both by
    held-out energy distance plus how far its plan is from optimal."""
    budget_seconds: float = Field(default=60.0, gt=0.0)
    """Processor seconds of the fit, all threads together."""
    components: tuple[PositiveInt, ...] = Field(default=(1, 2, 3, 4, 5, 6, 8, 12, 16, 24), min_length=1)
    """Numbers of components of the potential to try, rising; they are merged from the largest down, and held-out rows choose."""
    width: PositiveInt = 64
    """Of the network's three hidden layers."""
    batch_size: int = Field(default=256, ge=2)
    learning_rate: float = Field(default=3e-3, gt=0.0)
    pairs: Literal["simulated", "coupled"] = "simulated"
    """What the network learns from first: pairs of the potential's plan, or of entropic plans between mini-batches."""
    steps: PositiveInt = 20
    """Of a simulation; the mixture's plan is drawn in one."""


class TransportConfig(Section):
    """How the cells of a plate are coupled."""

    cost: Literal["principal", "whitened", "projection", "pixels"] = "principal"
    """½|x - y|² of: the control's leading components; these whitened by each plate's control cells; a random projection; the pixels."""
    components: PositiveInt = Field(default=128, le=256)
    """Of `principal` and `whitened`."""
    width: PositiveInt = Field(default=256, le=4096)
    """Of `projection`."""
    stratum: int = Field(default=1024, ge=2)
    """Most cells on a side of one coupling."""
    reg_rel: float = Field(default=0.0, ge=0.0)
    """Regularisation as a share of the costs' standard deviation; 0 gives each source its one target."""
    tau: float = Field(default=1.0, gt=0.0, le=1.0)
    """Below 1 (0.9 to 1) outliers keep some of their mass; needs reg_rel."""
    across_plates: bool = False
    """Pair targets on a plate without control cells with those of other plates, which teaches the difference of plates, too."""

    @model_validator(mode="after")
    def _unbalanced_needs_reg(self) -> "TransportConfig":
        if self.tau < 1 and self.reg_rel == 0:
            raise ValueError(
                f"tau = {self.tau:g}: only an entropic coupling can be unbalanced; set reg_rel, such as 0.05"
            )
        return self


class ImageBridgeConfig(Section):
    """A bridge between images of a control and of conditions."""

    sigma_rel: float | tuple[float, float] = (0.02, 0.4)
    """Volatility over the pixels' standard deviation: how much of the cell need not be kept. Of a range the network learns all, and
    `translate` chooses."""
    coupling: Literal["ot", "independent", "gaussian"] = "ot"
    """Of the pairs: of a plate at least cost; of a plate by lot (bridge matching); or, to each real cell, one that the bridge between
    Gaussians of the same moments leads from, or to."""
    align: bool = False
    """Turn the target of a pair to the nearest of its eight orientations."""
    modes: int = Field(default=128, ge=0, le=1024)
    """Leading modes of the images on which the network starts from whole covariances; 0: from one variance a channel."""
    train: Literal["full", "lora", "scratch"] = "full"
    """All weights of the base; an adapter with the first and last layer, the time embedding and the rows of the conditions; or none of it."""
    clock: Literal["noise", "endpoint", "elapsed"] = "endpoint"
    """What stands for the diffusion's time: how much noise is in the image, how much of its end, or how far it has come."""
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the training cells that judge the bridge and do not train it."""
    looks: PositiveInt = 1
    """How often held-out cells are looked at, the last time at the end."""
    judged: int = Field(default=24, ge=4)
    """Held-out cells of each condition and direction that are translated at a look."""
    imf_rounds: int = Field(default=0, ge=0)
    """Rounds of iterative Markovian fitting after the training, each kept only if held-out cells say so."""
    imf_steps: PositiveInt = 200
    """Optimiser steps of a round."""
    imf_pairs: PositiveInt = 512
    """Pairs that a round simulates in each direction."""
    imf_replay: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of the pairs of a round that are those of the coupling, and not simulated."""
    simulation_steps: PositiveInt = 10
    """Of a simulation, in training and at a look."""

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and the highest volatility."""
        return self.sigma_rel if isinstance(self.sigma_rel, tuple) else (self.sigma_rel, self.sigma_rel)

    @model_validator(mode="after")
    def _range_rises(self) -> "ImageBridgeConfig":
        low, high = self.sigma_range
        if low <= 0:
            raise ValueError(
                f"sigma_rel = {low:g}: without volatility there is no bridge; give a positive number, such as 0.1"
            )
        if low > high:
            raise ValueError(f"sigma_rel = [{low:g}, {high:g}]: the first is above the second; swap them")
        return self


FlowKind = Literal["control-flow", "noise-flow"]
"""`control-flow`: from control cells of the plate to a condition (CellFlux); `noise-flow`: from noise, told condition and plate."""


class FlowRecipe(Section):
    """How a flow is trained and sampled, every setting given."""

    kind: FlowKind
    times: Literal["uniform", "skewed"]
    noise_level: float = Field(ge=0.0)
    noise_probability: float = Field(ge=0.0, le=1.0)
    condition_dropout: float = Field(ge=0.0, lt=1.0)
    guidance_scale: float = Field(ge=0.0)


_RECIPES: dict[FlowKind, dict[str, Any]] = {
    "control-flow": {
        "times": "skewed",
        "noise_level": 1.0,
        "noise_probability": 0.5,
        "condition_dropout": 0.2,
        "guidance_scale": 1.2,
    },
    "noise-flow": {
        "times": "uniform",
        "noise_level": 0.0,
        "noise_probability": 0.0,
        "condition_dropout": 0.0,
        "guidance_scale": 1.0,
    },
}
"""As published, with code: CellFlux's BBBC021 run, and Jones et al.'s, which hides labels one by one (conditioning.token_dropout)."""


class FlowConfig(Section):
    """What differs from a flow's published recipe."""

    times: Literal["uniform", "skewed"] | None = None
    """Where on its line a pair is seen; `skewed` is mostly near the target. By default skewed for control-flow, else uniform."""
    noise_level: float | None = Field(default=None, ge=0.0)
    """Standard deviation of the noise that is added to control cells, in image units (default 1): at translation always."""
    noise_probability: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of the control cells that it is added to in training (default 0.5)."""
    condition_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Share of the images whose condition is hidden: 0.2 for control-flow; 0 for noise-flow, whose network hides its tokens itself."""
    guidance_scale: float | None = Field(default=None, ge=0.0)
    """Of translations that ask for no other: 1.2 for control-flow, 1 (none) for noise-flow."""

    def recipe(self, kind: FlowKind) -> FlowRecipe:
        """Return the published recipe with these settings in place of its own.

        Raises
        ------
        ConfigError : noise to be added to what is noise.
        """
        given = self.model_dump(exclude_none=True)
        for name in ("noise_level", "noise_probability"):
            if kind == "noise-flow" and name in given:
                raise ConfigError(f"flow.{name} is of control-flow; noise-flow starts from noise alone. Leave it out.")
        return FlowRecipe(kind=kind, **(_RECIPES[kind] | given))


class FlowFitConfig(Section):
    """What fitting a flow to cells of a store needs to know."""

    store: Path
    plates: tuple[str, ...] | None = None
    """Train on these plates only; None takes every plate of the split."""
    split: str | None = "train"
    flow: FlowConfig = FlowConfig()
    training: TrainingConfig = TrainingConfig()
    sampler: SolverConfig = SolverConfig(steps=13)
    """How the grid of samples is drawn."""
    augment: bool = True
    """Dequantise, flip and turn; otherwise the images are as stored."""
    across_plates: bool = False
    """Pair targets on a plate without control cells with those of other plates, which teaches the difference of plates, too."""
    resume: str = "auto"
    accept_changes: bool = False
    """Continue a checkpoint that was made with other data, another base or other settings, with a warning for each difference."""
    init_from: Path | None = None
    """Another flow of this kind whose weights training starts from."""
    device: str = "auto"


class BridgeFitConfig(Section):
    """What fitting a bridge between cells of a store needs to know."""

    store: Path
    plates: tuple[str, ...] | None = None
    """Train on these plates only; None takes every plate of the split."""
    split: str | None = "train"
    bridge: ImageBridgeConfig = ImageBridgeConfig()
    transport: TransportConfig = TransportConfig()
    adapter: AdapterConfig = AdapterConfig(rank=16)
    """Of `bridge.train: lora`."""
    training: TrainingConfig = TrainingConfig(steps=1000, learning_rate=1e-3)
    augment: bool = True
    """Dequantise, flip and turn; otherwise the images are as stored."""
    resume: str = "auto"
    accept_changes: bool = False
    """Continue a checkpoint that was made with other data, another base or other settings, with a warning for each difference."""
    init_from: Path | None = None
    """Another bridge between the same conditions whose weights training starts from."""
    device: str = "auto"


class DenoiserFitConfig(Section):
    """What every stage that fits a denoiser to cells of a store needs to know."""

    store: Path
    plates: tuple[str, ...] | None = None
    """Train on these plates only; None takes every plate of the split."""
    split: str | None = "train"
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    sampler: SolverConfig = SolverConfig(steps=13)
    """How the sample grids are drawn."""
    condition_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the images whose condition is hidden, which trains the unconditional row."""
    augment: bool = True
    """Dequantise, flip and turn; otherwise the images are as stored."""
    resume: str = "auto"
    accept_changes: bool = False
    """Continue a checkpoint that was made with other data, another base or other settings, with a warning for each difference."""
    init_from: Path | None = None
    """A model's run or directory whose weights training starts from."""
    device: str = "auto"

    @model_validator(mode="after")
    def _grids_need_no_other_model(self) -> "DenoiserFitConfig":
        if self.sampler.guidance_by_distance:
            raise ValueError(
                "sampler.guidance_by_distance: embeddings that are still trained have no distances yet; leave it out"
            )
        for name in ("weaker", "classifier"):
            if getattr(self.sampler, name) is not None:
                raise ValueError(f"sampler.{name}: sample grids show the model that is trained alone; leave it out")
        return self
