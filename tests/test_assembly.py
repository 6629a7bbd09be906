from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cellbridge import assembly
from cellbridge.assembly import SPARE, Base, Model, ModelCard
from cellbridge.conditions import Condition
from cellbridge.config import AdapterConfig, NetworkConfig, ScheduleConfig, SolverConfig
from cellbridge.diffusion.schedule import make_schedule
from cellbridge.errors import ConditionError, ModelError
from cellbridge.runs import RunDir

NETWORK = NetworkConfig(widths=(8, 8), attention_levels=())


def card(**changed: Any) -> ModelCard:
    known = {
        "kind": "base",
        "channels": ("DNA",),
        "size_px": 8,
        "conditions": ("", "DMSO", "taxol@1", SPARE),
        "network": NETWORK,
        "schedule": ScheduleConfig(),
        "plates": ("P1",),
        "store_sha256": "0",
    }
    return ModelCard(**{**known, **changed})


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({"channels": ("AGP",)}, "trained on 8 px"),
        ({"size_px": 16}, "trained on 8 px"),
        ({"control": "water"}, 'control "DMSO", but the control of s is "water"'),
    ],
)
def test_a_store_of_other_channels_size_or_control_is_refused(store: dict[str, Any], message: str) -> None:
    info: Any = SimpleNamespace(**{"channels": ("DNA",), "size_px": 8, "control": "DMSO", "path": "s", **store})
    with pytest.raises(ModelError, match=message):
        assembly.check_fit(card(), info)


def test_an_adapter_for_what_the_base_knows_has_that_name_to_itself() -> None:
    base = Base(nn.Identity(), card(), "0", make_schedule("cosine", 10))
    adapted = assembly.adapter_card(base, "taxol@1", adapter=AdapterConfig(), plates=["P2"], store_sha256="0")
    assert adapted.conditions.count("taxol@1") == 1
    assert adapted.row("taxol@1") == len(adapted.conditions) - 1
    assert adapted.condition == "taxol@1"
    assert adapted.row("DMSO") == 1


def test_averaged_weights_that_are_not_exactly_the_parameters_are_never_published(tmp_path: Path) -> None:
    network = assembly.build_network(card(), seed=0)
    ema = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    first = next(iter(ema))
    for wrong in ({k: v for k, v in ema.items() if k != first}, ema | {"more": torch.zeros(1)}):
        with pytest.raises(ModelError, match="averaged weights"):
            assembly.publish_base(RunDir(tmp_path), network, ema=wrong, card=card())
    assert not RunDir(tmp_path).model.exists()


def test_a_source_that_nothing_models_is_refused_by_its_own_name() -> None:
    base = Base(nn.Identity(), card(), "0", make_schedule("cosine", 10))
    models = {Condition("DMSO"): Model(base.denoiser(), 1, base.card)}
    with pytest.raises(ConditionError, match=r'no model of the source "taxol@1".*Known: DMSO\.'):
        assembly.build_translator("ddib", models, source=Condition("taxol", 1.0), solver=SolverConfig(), x_T="inverted")
