"""How the network is run changes no number and no name: compiled, recomputing its activations, or in another memory layout."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from cellbridge.adapters.lora import attach
from cellbridge.config import NetworkConfig, TrainingConfig
from cellbridge.errors import ConfigError
from cellbridge.networks.classifier import build_classifier
from cellbridge.networks.unet import build_unet
from cellbridge.runs import RunDir
from cellbridge.runtime import generator
from cellbridge.training import checkpoint, ema
from cellbridge.training.compilation import begin_step, compiled
from cellbridge.training.events import Compiling, Logged, Saved
from cellbridge.training.loop import LossOutput, fit
from cellbridge.training.recomputation import recomputing

CPU = torch.device("cpu")
KINDS = ("unet", "adapted", "classifier")
COMPILED = (
    pytest.param("unet", "default", marks=pytest.mark.slow),
    pytest.param("unet", "regional", marks=pytest.mark.slow),
    pytest.param("one level", "regional"),
    pytest.param("adapted", "default", marks=pytest.mark.slow),
    pytest.param("adapted", "regional", marks=pytest.mark.slow),
    pytest.param("classifier", "default"),
    pytest.param("classifier", "regional"),
)
SIZE_PX = 8


def network(kind: str, *, dropout: float = 0.0, size_px: int = SIZE_PX, layers_per_block: int = 1) -> nn.Module:
    if kind == "classifier":
        return build_classifier(channels=2, conditions=3, widths=(8, 8), seed=0).train()
    sizes = (
        {"widths": (8,), "attention_levels": (0,)}
        if kind == "one level"
        else {"widths": (8, 8), "attention_levels": (1,)}
    )
    config = NetworkConfig(dropout=dropout, layers_per_block=layers_per_block, **sizes)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = build_unet(config, channels=2, size_px=size_px, conditions=3)
        return (attach(module, rank=2) if kind == "adapted" else module).train()


def batch(step: int, micro: int = 0, *, size: int = 4, size_px: int = SIZE_PX) -> tuple[Tensor, Tensor, Tensor]:
    draw = generator("cpu", "test images", step, micro)
    images = torch.randn(size, 2, size_px, size_px, generator=draw)
    return images, torch.rand(size, generator=draw) * 999, torch.randint(3, (size,), generator=draw)


def loss(module: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> LossOutput:
    images, t, labels = given
    if hasattr(module, "head"):
        return LossOutput(nn.functional.cross_entropy(module(images), labels))
    return LossOutput((module(images, t, class_labels=labels, return_dict=False)[0] - images.cos()).square().mean())


def losses(module: nn.Module, called: nn.Module, *, steps: int = 6) -> list[float]:
    """Train the module by what is called, and return the loss of each step."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    seen = []
    for step in range(steps):
        value = loss(called, batch(step)).loss
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(value.item())
    return seen


def train(run, module: nn.Module, **settings) -> list:
    given = {"steps": 6, "batch_size": 8, "accumulation": 2, "warmup_steps": 0, "log_every": 1, "checkpoint_every": 3}
    return fit(
        module,
        loss,
        batch,
        config=TrainingConfig(**{**given, "precision": "fp32", "decay": "constant", **settings}),
        run=RunDir(run),
        identity={},
        device=CPU,
    )


def logged(events) -> list[float]:
    return [event.values["loss"] for event in events if isinstance(event, Logged)]


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "kind", [*(pytest.param(k, marks=pytest.mark.slow) for k in ("unet", "adapted")), "one level", "classifier"]
)
def test_the_forward_pass_is_one_graph(kind):
    module = network(kind, dropout=0.1)
    whole = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.isfinite(loss(whole, batch(0)).loss)


@pytest.mark.parametrize(("kind", "strategy"), COMPILED)
def test_compiled_training_has_the_losses_of_eager_training(kind, strategy):
    expected = losses(*[network(kind)] * 2)
    module = network(kind)
    with compiled(module, strategy, device=CPU, backend="aot_eager") as called:
        before = graphs()
        found = losses(module, called)
        assert graphs() > before
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_recomputed_activations_and_compiled_blocks_go_together():
    expected = losses(*[network("unet")] * 2)
    module = network("unet")
    with compiled(module, "regional", device=CPU, backend="aot_eager") as called, recomputing(module):
        assert losses(module, called) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("strategy", ["default", "regional"])
def test_evaluation_with_another_batch_size_compiles_nothing(strategy):
    module = network("classifier")
    with compiled(module, strategy, device=CPU, backend="aot_eager") as called:
        losses(module, called, steps=2)
        before = graphs()
        average = {name: p.detach().clone() for name, p in module.named_parameters()}
        with ema.applied(module, average), torch.no_grad():
            loss(module, batch(0, size=7))
        assert losses(module, called, steps=2)
        assert graphs() == before


def test_compiled_blocks_leave_names_copies_and_the_network_as_they_were():
    module = network("unet")
    names = list(module.state_dict())
    with compiled(module, "regional", device=CPU, backend="aot_eager"):
        assert any(part._compiled_call_impl for part in module.modules())
        assert list(module.state_dict()) == names
        assert not any(part._compiled_call_impl for part in copy.deepcopy(module).modules())
    assert not any(part._compiled_call_impl for part in module.modules())


def test_regional_compilation_needs_a_network_that_declares_its_blocks():
    with (
        pytest.raises(ConfigError, match=r"Sequential declares no repeated blocks\. Use training\.compile=default"),
        compiled(nn.Sequential(nn.Linear(1, 1)), "regional", device=CPU, backend="aot_eager"),
    ):
        pass


@pytest.mark.parametrize("strategy", ["default", "regional"])
def test_a_missing_compiler_is_told_before_training(tmp_path, strategy):
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)}),
        pytest.raises(ConfigError, match=r"no working C\+\+ compiler\. Install .* CXX .* training\.compile=none"),
    ):
        list(train(tmp_path, network("unet"), compile=strategy))


def test_gradients_accumulate_in_memory_that_no_replayed_graph_owns():
    weight = nn.Parameter(torch.ones(3))
    begin_step("reduce-overhead", torch.device("cuda"), [weight])
    held = weight.grad
    for _ in range(2):
        weight.sum().backward()
    assert weight.grad is held
    assert held.tolist() == [2.0, 2.0, 2.0]
    weight.grad = None
    begin_step("reduce-overhead", CPU, [weight])
    assert weight.grad is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("classifier", "default"),
        ("classifier", "reduce-overhead"),
        ("classifier", "max-autotune"),
        ("unet", "regional"),
        ("adapted", "regional"),
        ("unet", "default"),
    ],
)
def test_the_engine_trains_compiled_as_it_does_eagerly(tmp_path, kind, strategy):
    eager = list(train(tmp_path / "eager", network(kind)))
    events = list(train(tmp_path / "compiled", network(kind), compile=strategy, sample_every=2))
    assert Compiling(0, strategy) in events
    assert logged(events) == pytest.approx(logged(eager), rel=1e-4)
    saved = [checkpoint.load(RunDir(tmp_path / name).checkpoint(6)) for name in ("eager", "compiled")]
    for kind in ("weights", "ema", "optimizer"):
        assert list(getattr(saved[0], kind)) == list(getattr(saved[1], kind))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("regional", "none"), ("none", "regional")])
def test_compiled_and_eager_runs_continue_each_other(tmp_path, first, then):
    whole = logged(train(tmp_path / "whole", network("unet")))
    events = train(tmp_path / "parts", network("unet"), compile=first)
    while not isinstance(event := next(events), Saved) or event.step < 3:
        pass
    events.close()
    rest = logged(train(tmp_path / "parts", network("unet"), compile=then, gradient_checkpointing=True))
    assert rest == pytest.approx(whole[3:], rel=1e-4)


def measured(module: nn.Module, *, recomputed: bool, size_px: int) -> tuple[int, list[Tensor]]:
    """Return the bytes that the forward pass keeps for the backward pass, weights aside, and the gradients."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in weights:
            kept[address] = tensor
        return tensor

    torch.manual_seed(5)
    with recomputing(module) if recomputed else nullcontext():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss(module, batch(0, size=2, size_px=size_px)).loss
        size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        value.backward()
    return size, [p.grad for p in module.parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_take_less_than_half_the_memory_and_give_equal_gradients(kind):
    torch.manual_seed(1)
    modules = [network(kind, dropout=0.2, size_px=64, layers_per_block=2) for _ in range(2)]
    with torch.random.fork_rng([]):
        kept, expected = measured(modules[0], recomputed=False, size_px=64)
        less, found = measured(modules[1], recomputed=True, size_px=64)
    assert 2 * less <= kept
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_activations_are_kept_again_after_training(tmp_path):
    module = network("unet")
    list(train(tmp_path, module, gradient_checkpointing=True, steps=1))
    assert not any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


def test_a_network_that_cannot_recompute_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gradient_checkpointing: Sequential cannot recompute"):
        list(train(tmp_path, nn.Sequential(nn.Linear(1, 1)), gradient_checkpointing=True))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_layout_changes_rounding_only_and_resumes_exactly(tmp_path, kind):
    contiguous = logged(train(tmp_path / "contiguous", network(kind)))
    whole = logged(train(tmp_path / "whole", network(kind), channels_last=True))
    assert whole == pytest.approx(contiguous, rel=1e-5)
    for name, settings, expected in (
        ("same", {"channels_last": True}, whole[3:]),
        ("other", {"channels_last": False}, pytest.approx(whole[3:], rel=1e-5)),
    ):
        first = train(tmp_path / name, network(kind), channels_last=True)
        while not isinstance(event := next(first), Saved) or event.step < 3:
            pass
        first.close()
        assert logged(train(tmp_path / name, network(kind), **settings)) == expected
