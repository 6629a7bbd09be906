"""The arms of `bridge_comparison.py`: what trains each, as commands of cellbridge, and what translates with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bridge_studies import Made, Study
from counted_commands import options

from cellbridge.conditions import Condition

BATCH = 16
LEARNING_RATE = 2e-3
"""Of the flows; adapters take the demo's."""
BRIDGE_LEARNING_RATE = 1e-3
"""Of the bridges: at 2e-3 the network of the OT-coupled one explained nothing of what its linear start leaves (300 steps of 16, held-out
pairs of the synthetic study: -0.2 %; at 1e-3: 3.3 %), while that of independent pairs gained 20 %."""
DIFFUSION = ("--set", "solver.steps=13", "--set", "solver.guidance_scale=1.5")
"""Of DDIB and SDEdit, as in the demo."""

Fits = Callable[[Study, Path, int], dict[Path, list[str]]]
"""(study, folder of the arm, steps in all) → run → the command that trains it, without what all of them are told."""


@dataclass(frozen=True)
class Arm:
    """One method.

    Parameters
    ----------
    translate : what `translate` is told, beside store, cells, targets and seed.
    trained_as : the arm whose models it uses, where it trains none of its own.
    unchanged : whether it can be asked for the condition that cells are under.
    steps : of its training, where it is not to take as many as the budget allows.
    """

    fits: Fits
    translate: Callable[[Study, Made, Path], list[str]]
    trained_as: str | None = None
    unchanged: bool = True
    steps: int | None = None


def _bridge(*settings: str, steps: int | None = None) -> Arm:
    def fits(study: Study, folder: Path, steps: int) -> dict[Path, list[str]]:
        told = options(
            "--set", (f"training.steps={steps}", f"training.learning_rate={BRIDGE_LEARNING_RATE}", *settings)
        )
        return {folder / "bridge": ["fit-bridge", *options("--condition", study.targets), *told]}

    def translate(_: Study, __: Made, folder: Path) -> list[str]:
        return ["--method", "bridge", "--bridge", str(folder / "bridge")]

    return Arm(fits, translate, steps=steps)


def _refined(*settings: str) -> Arm:
    """A bridge of which a third of the optimiser steps are a round of iterative Markovian fitting."""

    def fits(study: Study, folder: Path, steps: int) -> dict[Path, list[str]]:
        of_round = steps // 3
        short = ("bridge.imf_pairs=128", "bridge.simulation_steps=6")
        refined = _bridge(*settings, "bridge.imf_rounds=1", f"bridge.imf_steps={of_round}", *short)
        return refined.fits(study, folder, steps - of_round)

    return Arm(fits, _bridge().translate)


def _adapters(study: Study, folder: Path) -> dict[Path, str]:
    return {folder / Condition.parse(name).slug: name for name in study.targets}


def _lora(study: Study, folder: Path, steps: int) -> dict[Path, list[str]]:
    """Share the steps among the conditions, since each has an adapter of its own."""
    of_each = options("--set", (f"training.steps={max(1, steps // len(study.targets))}", "adapter.rank=16"))
    learning = ["--set", "training.learning_rate=5e-3"]
    return {
        run: ["finetune", "--condition", name, *of_each, *learning] for run, name in _adapters(study, folder).items()
    }


def _over_noise(method: str, *more: str) -> Callable[[Study, Made, Path], list[str]]:
    def translate(study: Study, made: Made, folder: Path) -> list[str]:
        runs = options("--adapter", list(_adapters(study, folder)))
        return ["--method", method, "--base", str(made.base), *runs, *DIFFUSION, *more]

    return translate


def _flow(kind: str, *, unchanged: bool) -> Arm:
    def fits(study: Study, folder: Path, steps: int) -> dict[Path, list[str]]:
        told = options("--set", (f"training.steps={steps}", f"training.learning_rate={LEARNING_RATE}"))
        return {folder / kind: ["fit-baseline", "--kind", kind, *options("--condition", study.targets), *told]}

    def translate(_: Study, __: Made, folder: Path) -> list[str]:
        return ["--method", "flow", "--baseline", str(folder / kind)]

    return Arm(fits, translate, unchanged=unchanged)


ARMS = {
    "S0": _bridge("bridge.coupling=independent"),
    "S1": _bridge("bridge.coupling=ot"),
    "S2": _refined("bridge.coupling=ot"),
    "linear start": _bridge("bridge.coupling=independent", steps=1),
    "OT linear start": _bridge("bridge.coupling=ot", steps=1),
    "DDIB with LoRA": Arm(_lora, _over_noise("ddib")),
    "SDEdit": Arm(_lora, _over_noise("sdedit", "--strength", "0.5"), trained_as="DDIB with LoRA"),
    "control-flow": _flow("control-flow", unchanged=False),
    "noise-flow": _flow("noise-flow", unchanged=True),
}
"""S0: bridge matching, S1: OT-coupled bridge, S2: S1 refined; one network for all conditions in each, and in the flows. The linear
starts are what S0 and S1 begin with, after one step: what their networks add is beyond them."""


def fit_commands(study: Study, made: Made, arm: Arm, folder: Path, *, steps: int, seed: int) -> dict[Path, list[str]]:
    """Return run → the command that trains it, whole."""
    settings = (
        f"training.batch_size={BATCH}",
        "training.precision=fp32",
        "training.checkpoint_every=1000000",
        *([] if study.plates is None else [f"plates=[{','.join(study.plates)}]"]),
    )
    shared = ["--store", str(made.world.store), "--base", str(made.base), "--seed", str(seed), "--device", "cpu"]
    return {
        run: [*command, *shared, *options("--set", settings), "--out", str(run)]
        for run, command in arm.fits(study, folder, steps).items()
    }


def translate_command(study: Study, made: Made, arm: Arm, folder: Path, out: Path) -> list[str]:
    """Return the command that translates the held-out control cells to every target and, where the arm can, to the control."""
    targets = options("--target", (*study.targets, *(("DMSO",) if arm.unchanged else ())))
    cells = ["--store", str(made.world.store), "--n", str(study.cells), "--seed", "0", "--device", "cpu"]
    told = arm.translate(study, made, folder)
    return ["translate", *cells, *targets, *told, "--set", "overwrite=true", "--out", str(out)]


def evaluate_command(made: Made, translated: Path, out: Path) -> list[str]:
    """Return the command that judges a translation."""
    world = made.world
    given = {"--translated": translated, "--reference": world.store, "--classifier": world.classifier}
    given |= {} if world.truth is None else {"--truth": world.truth}
    paths = [text for name, path in given.items() for text in (name, str(path))]
    return ["evaluate", *paths, "--set", "figures=false", "--set", "resamples=300", "--out", str(out)]
