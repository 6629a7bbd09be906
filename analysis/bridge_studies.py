"""The two studies of `bridge_comparison.py`: where their cells lie, what judges them, and which arms are compared on them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synthetic_world import World, make_world

from cellbridge.config import NetworkConfig, TrainingConfig
from cellbridge.stages import pretrain, synthesize, train_classifier

PLATES = tuple(f"SY00000{number}" for number in range(1, 6))
TARGETS = ("taxol@1", "latrunculin@1", "tunicamycin@5")
DOSES = ("cyclohexamide@15", "cyclohexamide@50")
PLATE_OF_DOSES = "Week4_27801"


@dataclass(frozen=True)
class Study:
    """Cells under several conditions, and a base of their control that every method starts from.

    Parameters
    ----------
    targets : conditions to learn; all by one network, but for adapters.
    plates : to learn them from; None takes every plate of the training split.
    cells : held-out control cells that every arm translates.
    arms : by name, in the order in which they are trained.
    """

    name: str
    targets: tuple[str, ...]
    plates: tuple[str, ...] | None
    cells: int
    arms: tuple[str, ...]
    make: Callable[[Path, Path | None], "Made"]


@dataclass(frozen=True)
class Made:
    """What a study starts from."""

    world: World
    base: Path


def _synthetic(out: Path, _: Path | None) -> Made:
    """Five rendered plates of 32 px cells, the last held out, and a base of about 180 processor seconds."""
    plates = synthesize.Config(plates=PLATES, conditions=TARGETS, wells=(4,))
    world = make_world(out, plates, size_px=32)
    if not (out / "base/model").exists():
        network = NetworkConfig(widths=(16, 32, 64, 96), attention_levels=(3,))
        training = TrainingConfig(
            steps=1150, batch_size=16, learning_rate=2e-3, checkpoint_every=1150, precision="fp32"
        )
        config = pretrain.Config(store=world.store, network=network, training=training, device="cpu")
        pretrain.run(config, out=out / "base")
    return Made(world, out / "base")


def _bbbc021(out: Path, run: Path | None) -> Made:
    """Store and base of `make study STUDY=bbbc021_cyclohexamide`, and a classifier that knows both doses."""
    if run is None:
        raise SystemExit(
            "--study bbbc021 needs --study-run: the folder that `make study STUDY=bbbc021_cyclohexamide` wrote."
        )
    store, classifier = run / "store.zarr", out / "classifier"
    if not (classifier / "model").exists():
        training = TrainingConfig(
            steps=600,
            batch_size=64,
            learning_rate=2e-3,
            weight_decay=0.01,
            ema_decay=0.99,
            checkpoint_every=600,
            precision="fp32",
        )
        config = train_classifier.Config(
            store=store, conditions=("DMSO", *DOSES), plates=(PLATE_OF_DOSES,), training=training, device="cpu"
        )
        train_classifier.run(config, out=classifier)
    return Made(World(store, classifier), run / "base")


STUDIES = {
    "synthetic": Study(
        "synthetic",
        TARGETS,
        None,
        128,
        ("S0", "S1", "DDIB with LoRA", "SDEdit", "control-flow", "noise-flow", "S2", "linear start", "OT linear start"),
        _synthetic,
    ),
    "bbbc021": Study(
        "bbbc021",
        DOSES,
        (PLATE_OF_DOSES,),
        128,
        ("S0", "S1", "DDIB with LoRA", "SDEdit", "control-flow", "noise-flow", "linear start", "OT linear start"),
        _bbbc021,
    ),
}
