"""Synthetic plates whose truth is known, as studies share them: plates, store, counterfactuals and classifier, each made once."""

from dataclasses import dataclass
from pathlib import Path

from cellbridge.data.preparation import SplitConfig
from cellbridge.stages import prepare, synthesize, train_classifier


@dataclass(frozen=True)
class World:
    """Where a study's cells lie, and what judges them.

    Parameters
    ----------
    truth : counterfactuals of the held-out control cells; None where nobody knows them.
    """

    store: Path
    classifier: Path
    truth: Path | None = None


def make_world(out: Path, plates: synthesize.Config, *, size_px: int, crop_px: int | None = None) -> World:
    """Render and prepare the plates and train the classifier, as far as that is not done.

    Parameters
    ----------
    plates : those under `test_plates` are held out, and have a truth.
    """
    folder, store, truth, classifier = (out / name for name in ("plates", "store.zarr", "truth.zarr", "classifier"))
    if not folder.exists():
        synthesize.run(plates, out=folder)
    if not store.exists():
        split = SplitConfig(test=plates.truth_plates)
        cut = {"size_px": size_px, **({} if crop_px is None else {"crop_px": crop_px})}
        prepare.run(prepare.Config(manifest=folder / "manifest.yaml", split=split, **cut), out=store)
    if not truth.exists():
        prepare.run(prepare.Config(manifest=folder / "truth/manifest.yaml", crops_from=store), out=truth)
    if not (classifier / "model").exists():
        train_classifier.run(train_classifier.Config(store=store, device="cpu"), out=classifier)
    return World(store, classifier, truth)
