"""How many micro-batches a step is cut into changes rounding, and nothing else."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
import torch
from small_cells import CELLS, SmallDenoiser, denoising, source
from torch import Tensor

from cellbridge.runs import RunDir
from cellbridge.stages import train_classifier
from cellbridge.training import checkpoint
from cellbridge.training.events import Logged, Saved, Started
from cellbridge.training.slicing import count, sliced


def trained(run, **settings) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    module = SmallDenoiser()
    logged = [event.values for event in denoising(run, module=module, **settings) if isinstance(event, Logged)]
    return module.state_dict(), logged


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_neither_weights_nor_losses(tmp_path, accumulation):
    weights, logged = trained(tmp_path / "one")
    others, again = trained(tmp_path / "many", accumulation=accumulation)
    torch.testing.assert_close(others, weights, rtol=0, atol=1e-6)
    for one, many in zip(logged, again, strict=True):
        names = [name for name in one if name.startswith(("loss", "log_loss", "gradient_norm"))]
        assert len(names) > 10
        assert [many[name] for name in names] == pytest.approx([one[name] for name in names], abs=1e-6, rel=1e-5)


def test_accumulation_may_change_on_a_resume(tmp_path):
    weights, _ = trained(tmp_path / "whole", sampling=torch.arange(float(CELLS)))
    first = denoising(tmp_path / "parts", sampling=torch.arange(float(CELLS)), accumulation=4)
    while not isinstance(next(first), Saved):
        pass
    first.close()
    module = SmallDenoiser()
    started, *_ = denoising(tmp_path / "parts", module=module, sampling=torch.arange(float(CELLS)), accumulation=2)
    assert isinstance(started, Started)
    assert started.step == 6
    torch.testing.assert_close(module.state_dict(), weights, rtol=0, atol=1e-6)


def test_a_checkpoint_that_still_names_its_accumulation_is_accepted(tmp_path):
    list(denoising(tmp_path / "old", steps=6, decay="constant", accumulation=2))
    snapshot = checkpoint.load(RunDir(tmp_path / "old").checkpoint(6))
    older = replace(snapshot, settings={**snapshot.settings, "accumulation": 2})
    checkpoint.save(RunDir(tmp_path / "new"), older, keep_last=1)
    assert next(denoising(tmp_path / "new", decay="constant")).step == 6


@pytest.mark.parametrize("accumulation", [2, 4])
def test_intensity_jitter_is_that_of_the_whole_step(accumulation):
    def jittered(parts: int) -> Tensor:
        config = train_classifier.Config(store="unused", training={"batch_size": 8, "accumulation": parts})
        batches = train_classifier._jittered(source(config.training), config)
        return torch.cat([batches(3, micro).images for micro in range(parts)])

    assert torch.equal(jittered(accumulation), jittered(1))


def test_slicing_reaches_every_tensor_as_long_as_the_batch():
    @dataclass(frozen=True)
    class Inner:
        images: Tensor
        table: Tensor
        name: str

    class Pair(NamedTuple):
        inner: Inner
        rest: dict[str, object]

    four, seven, scalar = torch.arange(4), torch.arange(7), torch.tensor(1.0)
    batch = Pair(Inner(four, seven, "x"), {"weights": (four, None), "scale": scalar})
    part = sliced(batch, slice(1, 3))
    assert count(batch) == 4
    assert part.inner.images.tolist() == part.rest["weights"][0].tolist() == [1, 2]
    assert part.inner.table is seven
    assert (part.inner.name, part.rest["weights"][1], part.rest["scale"]) == ("x", None, scalar)
