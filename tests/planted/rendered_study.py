"""Studies of rendered plates, small and quick: fields, stores, the truth of each control cell, and a classifier, by cellbridge's own stages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellbridge.config import TrainingConfig
from cellbridge.data.preparation import SplitConfig
from cellbridge.stages import prepare, synthesize, train_classifier

TRAINING_PLATES, TEST_PLATES = ("P1", "P2", "P3"), ("P4", "P5")
SIZE_PX = 32


@dataclass(frozen=True)
class Study:
    """What distinguishes one study from another: its seed, its conditions, and the mechanism that each compound's name stands for."""

    seed: int
    conditions: tuple[str, ...]
    compounds: Mapping[str, str]
    cells_per_field: int = 14


FIRST = Study(seed=11, conditions=("taxol@1", "tunicamycin@5"), compounds={})
SECOND = Study(
    seed=29,
    conditions=("shadow@1", "breaker@1"),
    compounds={"shadow": "rotenone", "breaker": "latrunculin"},
    cells_per_field=16,
)
"""Other mechanisms, under names that the renderer does not know, other plates, other cells, and fields that are fuller."""


def render_study(study: Study, folder: Path, *, steps: int = 250) -> dict[str, Path]:
    """Render the study's plates and run `prepare` (the cells and their truth) and `train-classifier` on them."""
    plates = synthesize.Config(
        seed=study.seed,
        plates=(*TRAINING_PLATES, *TEST_PLATES),
        test_plates=TEST_PLATES,
        conditions=study.conditions,
        compounds=dict(study.compounds),
        control_wells=4,
        wells=(4,),
        sites=1,
        field_px=192,
        cells_per_field=study.cells_per_field,
    )
    synthesize.run(plates, out=folder / "plates")
    store, truth, classifier = folder / "store.zarr", folder / "truth.zarr", folder / "classifier"
    split = SplitConfig(by="plate", test=TEST_PLATES)
    prepare.run(
        prepare.Config(manifest=folder / "plates/manifest.yaml", split=split, size_px=SIZE_PX, illumination="none"),
        out=store,
    )
    prepare.run(prepare.Config(manifest=folder / "plates/truth/manifest.yaml", crops_from=store), out=truth)
    training = TrainingConfig(
        steps=steps, batch_size=32, learning_rate=4e-3, weight_decay=0.01, ema_decay=0.98, checkpoint_every=steps
    )
    settings = train_classifier.Config(store=store, widths=(8, 16, 32, 32), training=training, device="cpu")
    train_classifier.run(settings, out=classifier)
    return {"reference": store, "truth": truth, "classifier": classifier}
