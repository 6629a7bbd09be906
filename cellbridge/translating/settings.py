"""Settings of `translate`, and which of them each method has: what would do nothing is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cellbridge.config import SolverConfig, XTOrigin
from cellbridge.settings import Section, Seed

Method = Literal["bridge", "ddib", "flow", "sdedit"]


class BridgeSolverConfig(Section):
    """How a cell is taken over a bridge."""

    steps: PositiveInt = 20
    """Of each leg: a way between two conditions leads through the control and has two."""
    grid: Literal["quadratic", "uniform"] = "quadratic"
    """Where the steps lie in bridge time; `quadratic` is dense where little of it remains."""
    flow: Literal["sde", "ode"] = "sde"
    """`sde`: the bridge's own process, by the cell's seed; `ode`: its probability flow, four network calls a step, which gives
    one target for each cell."""
    step: Literal["mean", "euler"] = "mean"
    """Of the SDE: by Brownian bridges to the mean endpoint, or by Euler's rule, which adds noise in the last step too."""

    @model_validator(mode="after")
    def _flow_has_the_step(self) -> "BridgeSolverConfig":
        if self.flow == "ode" and self.step != "mean":
            raise ValueError(f"step = {self.step} is of flow sde, found flow ode; leave it out")
        return self


_NEVER_OF: Mapping[Method, tuple[str, ...]] = {
    "bridge": ("base", "adapters", "baseline", "unseen", "smiles", "solver", "x_T", "x_T_references"),
    "ddib": ("bridge", "baseline", "bridge_solver", "strength"),
    "flow": ("base", "adapters", "bridge", "bridge_solver", "unseen", "smiles", "x_T", "x_T_references"),
    "sdedit": ("bridge", "baseline", "bridge_solver", "x_T", "x_T_references"),
}
"""Method → settings that would do nothing."""

_MODELS: Mapping[Method, tuple[str, str]] = {
    "bridge": ("bridge", "fit-bridge"),
    "ddib": ("base", "pretrain"),
    "flow": ("baseline", "fit-baseline"),
    "sdedit": ("base", "pretrain"),
}
"""Method → the setting that names its model, and the command that trains one."""

_INSTEAD = {
    "strength": "a cell's own noise leads back to the cell, whatever the strength; use method sdedit or bridge",
    "solver": "how a cell is taken over a bridge, bridge_solver says",
}


class Config(Section):
    """Settings of `translate`."""

    store: Path
    method: Method = "ddib"
    """`bridge`: over a bridge of `fit-bridge`; `ddib`: to the cell's noise under the base and back under the target's model; `sdedit`:
    noised part of the way, and denoised under the target's model; `flow`: along a flow of `fit-baseline`."""
    base: Path | None = None
    """The run of `pretrain`, for ddib and sdedit."""
    adapters: tuple[Path, ...] = ()
    bridge: tuple[Path, ...] = ()
    """Runs of `fit-bridge`; of several each has conditions of its own, and all have one control."""
    baseline: Path | None = None
    """The run of `fit-baseline`, for flow."""
    name: str | None = Field(default=None, min_length=1)
    """What results call the model, so that several settings of one method are told apart; None takes the method's own name."""
    source: str | None = None
    """The condition of the cells to translate; None is the control."""
    targets: tuple[str, ...] | None = None
    """The conditions to translate to; None is every one but the source that is modelled."""
    split: str | None = "test"
    plates: tuple[str, ...] | None = None
    n: PositiveInt | None = None
    """How many cells, drawn evenly over plates by the seed; None takes all."""
    samples_per_cell: PositiveInt = 1
    """Draws of each cell, each with a seed of its own; rows say in `Metadata_Sample` which they are. `evaluate` pairs cells with the
    first, which is the one that a single draw would have been."""
    strength: float | None = Field(default=None, ge=0.0)
    """How much may change. sdedit: share of the way to noise, from 0 (the cell) to 1 (a new cell), 0.5 if not given. bridge: its
    volatility over the standard deviation of pixels, within the range that it was trained over; what it was trained at, or of a range
    the geometric middle, if not given. flow, from control cells: standard deviation of the noise that is added to a cell, in image units;
    0 starts at the cell itself, and its recipe's if not given."""
    nfe: PositiveInt | None = None
    """Calls of the network that a cell may cost for one target; steps become the most that keeps within it."""
    unseen: bool = False
    """Take a condition that neither the store nor the models know for one that the base is to read the name, SMILES or (of a compound
    that it was trained on) dose of; otherwise it is taken for a slip of the pen."""
    smiles: dict[str, str] = Field(default_factory=dict)
    """SMILES of unseen compounds by name, for a base that reads SMILES."""
    solver: SolverConfig = SolverConfig()
    bridge_solver: BridgeSolverConfig = BridgeSolverConfig()
    x_T: XTOrigin = "inverted"
    """`inverted`: the cell's own noise; `fresh`: N(0, I), which gives new cells; `prior:DIR`: new cells out of the noise that each
    target really has, as a run of `fit-prior` found it."""
    x_T_references: NonNegativeInt = 0
    """Of so many cells, keep in `OUT_x_T.zarr` beside the result what their x_T is held against: x_T in twice the steps, of images
    that the source's model generated, and of training cells. Costs five inversions of each."""
    trajectories: NonNegativeInt = 0
    """Of so many cells, drawn evenly over plates, keep the way to each target: frames in `OUT_trajectories.zarr`, and pictures of
    them as `OUT_trajectories.gif` and `.png`."""
    frames: int = Field(default=9, ge=2)
    """Of each trajectory, the cell and its translation among them."""
    seed: Seed = 0
    batch_size: PositiveInt = 64
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    device: str = "auto"
    overwrite: bool = False
    """Replace `out`, if it is a store that `translate` made, and what lies beside it."""

    @property
    def keeps_noise(self) -> bool:
        """Whether cells go over x_T, which the store then keeps."""
        return self.method == "ddib"

    @model_validator(mode="after")
    def _method_has_its_models(self) -> "Config":
        needed, stage = _MODELS[self.method]
        if not getattr(self, needed):
            raise ValueError(f'"{needed}" is required by method {self.method}; give the run of `cellbridge {stage}`')
        return self

    @model_validator(mode="after")
    def _method_has_the_settings(self) -> "Config":
        for key in _NEVER_OF[self.method]:
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                why = _INSTEAD.get(key, "leave it out, or choose its method")
                raise ValueError(f"{key} does nothing for method {self.method}: {why}")
        if self.method == "sdedit":
            for key in ("fixed_point", "start_noise"):
                if getattr(self.solver, key):
                    raise ValueError(f"solver.{key} is of inversion, and method sdedit inverts nothing; leave it out")
            if self.strength is not None and self.strength > 1:
                raise ValueError(f"strength = {self.strength:g}: sdedit's is a share of the way to noise, from 0 to 1")
        return self

    @model_validator(mode="after")
    def _references_are_of_inverted_noise(self) -> "Config":
        if self.x_T_references and self.x_T != "inverted":
            raise ValueError(f"x_T_references are of inverted noise, found x_T = {self.x_T}; leave them out")
        return self

    @model_validator(mode="after")
    def _chance_decides_samples(self) -> "Config":
        if self.samples_per_cell > 1 and (why := self._certain()):
            raise ValueError(f"samples_per_cell = {self.samples_per_cell}: all draws of a cell are equal, as {why}")
        return self

    @model_validator(mode="after")
    def _ways_begin_at_cells(self) -> "Config":
        if not self.trajectories:
            if self.frames != type(self).model_fields["frames"].default:
                raise ValueError("frames are of trajectories; say of how many cells, such as trajectories: 4")
            return self
        if self.x_T != "inverted":
            raise ValueError(f"trajectories begin at cells, and x_T = {self.x_T} makes new ones; leave one of them out")
        if self.method == "sdedit" and self.strength == 0:
            raise ValueError("trajectories: strength 0 leaves cells as they are; leave one of them out")
        return self

    @model_validator(mode="after")
    def _steps_are_said_once(self) -> "Config":
        steps: Any = self.bridge_solver if self.method == "bridge" else self.solver
        if self.nfe is not None and steps.steps != type(steps).model_fields["steps"].default:
            raise ValueError(
                f"nfe = {self.nfe} and steps = {steps.steps} both say how many steps; leave one of them out"
            )
        return self

    def _certain(self) -> str:
        """Say why chance has no part in a translation; nothing where it has."""
        if self.method == "bridge" and self.bridge_solver.flow == "ode":
            return "the probability flow leaves nothing to chance; use bridge_solver.flow: sde"
        if self.method == "ddib" and self.x_T == "inverted" and not self.solver.start_noise:
            return (
                "ddib goes back from the cell's own noise; use x_T: fresh or a prior for new cells, or another method"
            )
        return "strength 0 returns the cell" if self.method == "sdedit" and self.strength == 0 else ""
