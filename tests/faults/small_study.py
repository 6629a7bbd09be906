"""A very small study, and the commands that train on it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

_NETWORK = ("network.widths=[16,32]", "network.attention_levels=[1]", "network.dropout=0.1", "sampler.steps=2")
_TRAINING = ("training.batch_size=8", "training.log_every=1", "training.precision=fp32")


def settings(*assignments: str) -> list[str]:
    """Return `--set A.B=C` for each assignment."""
    return [word for text in assignments for word in ("--set", text)]


@dataclass(frozen=True)
class Study:
    """2 plates × 12 wells × 2 sites × 5 channels of 64 × 64 px, one of them for testing, and a model of each kind."""

    root: Path
    other_base: Path | None = None

    def with_base(self, base: Path) -> "Study":
        """Return the study with adapters to be trained over another base."""
        return replace(self, other_base=base)

    @property
    def store(self) -> Path:
        return self.root / "store.zarr"

    @property
    def base(self) -> Path:
        return self.other_base or self.root / "base"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def classifier(self) -> Path:
        return self.root / "classifier"

    def pretrain(self, *more: str) -> list[object]:
        """The command that trains a base (191,717 parameters, with dropout and flips), but for `--out`."""
        return ["pretrain", "--store", self.store, *settings(*_NETWORK, *_TRAINING, *more)]

    def finetune(self, *more: str) -> list[object]:
        """The command that fits an adapter, with accumulation and class-balanced weights."""
        about = ["--base", self.base, "--condition", "taxol"]
        own = ("training.accumulation=2", "adapter.rank=2", "sampler.steps=2")
        return ["finetune", "--store", self.store, *about, *settings(*own, *_TRAINING, *more)]

    def train_classifier(self, *more: str) -> list[object]:
        """The command that trains a classifier, with class-balanced sampling and jitter."""
        own = ("widths=[8,8]", "balance=sampling", "gain_jitter=0.1")
        return ["train-classifier", "--store", self.store, *settings(*own, *_TRAINING, *more)]

    def translate(self) -> list[object]:
        """The command that translates three cells, but for base, adapter and `--out`."""
        return ["translate", "--store", self.store, "--n", 3, *settings("solver.steps=2")]

    def made_by(self) -> Iterator[tuple[str, list[object]]]:
        """Return (name under the root, command but for `--out`) of everything in it, in order."""
        wells = settings("plates=[P1,P2]", "control_wells=6", "conditions=[taxol@1]", "wells=[6]", "sites=2")
        fields = settings("field_px=64", "cells_per_field=4", "truth=false")
        cut = settings("size_px=16", "crop_px=32", "illumination=none", "split={by: plate, test: [P2]}")
        yield "plates", ["synthesize", "--seed", 3, *wells, *fields]
        yield "store.zarr", ["prepare", "--manifest", self.root / "plates/manifest.yaml", *cut]
        yield "base", self.pretrain("training.steps=2")
        yield "adapter", self.finetune("training.steps=2")
        yield "classifier", self.train_classifier("training.steps=2", "held_out=null")
