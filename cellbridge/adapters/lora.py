"""LoRA over the frozen backbone: W x + (alpha / rank) B A x, with B = 0 at the start, and a trainable condition embedding.

References
----------
Hu et al. 2021, "LoRA", arXiv:2106.09685, eq. 3. Kalajdzievski 2023, "A rank stabilization scaling factor" (rsLoRA),
arXiv:2312.03732, eq. 3. Liu et al. 2024, "DoRA", arXiv:2402.09353, eq. 5.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from cellbridge.errors import ModelError
from cellbridge.networks.unet import require_same_keys

if TYPE_CHECKING:
    from peft import PeftModel

Target = Literal["attention", "convolution", "time"]

MODULES: dict[Target, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "convolution": ("conv1", "conv2", "conv_shortcut"),
    "time": (
        "time_emb_proj",
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "timestep_embedder.linear_1",
        "timestep_embedder.linear_2",
        "norm1.linear",
        "adaln_single.linear",
        "to_vector.outward",
    ),
}
"""Which modules each target adapts, by the end of their names, in UNets and transformers: attention's projections, the convolutions of
residual blocks, and what carries time and condition into the blocks."""

CONDITION_EMBEDDING = "class_embedding"


def attach(
    network: nn.Module,
    *,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[Target] = tuple(MODULES),
    rslora: bool = False,
    dora: bool = False,
) -> "PeftModel":
    """Wrap a backbone in a fresh LoRA adapter; everything but the adapter and the condition embedding is frozen.

    The wrapped network gives what the backbone gave, bit for bit (DoRA: to 1e-6 of the output's range), until it is trained. `network`
    itself is changed by this: hand in a copy where the base is needed untouched. A is drawn from PyTorch's default generator.

    Parameters
    ----------
    alpha : numerator of the scale; None takes the rank, so that the update is B A.
    targets : attention alone cannot change fine texture: it lies at the coarse levels only.
    rslora : scale by alpha / sqrt(rank), so that updates of every rank learn alike at one alpha; give it, as the default would make
        the scale sqrt(rank).
    dora : train the length of each output's weights apart from their direction W + (alpha / rank) B A.

    Raises
    ------
    ModelError : the backbone has none of the targets' modules; or, for DoRA, an output whose weights have no direction.
    """
    from peft import LoraConfig, get_peft_model

    present = _present(network, targets)
    if dora:
        _require_directions(network, present)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=present,
        modules_to_save=[CONDITION_EMBEDDING],
        use_rslora=rslora,
        use_dora=dora,
    )
    return get_peft_model(network, config)


def _present(network: nn.Module, targets: Sequence[Target]) -> list[str]:
    """Return the ends of names that the network has modules of; raise ModelError where it has none of any."""
    modules = [f".{name}" for name, _ in network.named_modules()]
    ends = [end for target in targets for end in MODULES[target]]
    present = [end for end in ends if any(name.endswith(f".{end}") for name in modules)]
    if not present:
        raise ModelError(
            f"LoRA on {', '.join(targets)}: the network has no module called {', '.join(ends)}. Name other adapter.targets."
        )
    return present


def _require_directions(network: nn.Module, ends: Sequence[str]) -> None:
    """Raise ModelError where an adapted output's weights are all 0: DoRA divides by their length, and every later number is NaN."""
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.is_meta or not any(f".{name}".endswith(f".{end}") for end in ends):
            continue
        if not weight.detach().flatten(1).any(dim=1).all():
            raise ModelError(
                f'DoRA: "{name}" has outputs whose weights are all 0, as network.zero_out starts them, and these have no direction. '
                "Use adapter.dora: false, or a base that was trained further."
            )


def copy_row(network: nn.Module, *, source: int, target: int) -> None:
    """Start a condition from another one: copy its row of the condition embedding (of a backbone, or of an attached adapter).

    Raises
    ------
    ModelError : the embedding has no such row.
    """
    weight = condition_rows(network)
    for row in (source, target):
        if not 0 <= row < len(weight):
            raise ModelError(f"the condition embedding has rows 0 to {len(weight) - 1}, no row {row}.")
    with torch.no_grad():
        weight[target] = weight[source]


def condition_rows(network: nn.Module) -> nn.Parameter:
    """Return the weight of the condition embedding that the network uses: (row, width)."""
    found = {
        name: parameter
        for name, parameter in network.named_parameters()
        if CONDITION_EMBEDDING in name.split(".") and "original_module" not in name
    }
    if len(found) != 1:
        raise ModelError(f"expected one condition embedding in the network, found {sorted(found) or 'none'}.")
    return next(iter(found.values()))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name: the adapter and the condition embedding."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put averaged (or any) weights in place of the trainable ones, by parameter name.

    Raises
    ------
    ModelError : a trainable parameter has no weight, or a weight no parameter.
    """
    parameters = trainable(model)
    require_same_keys(dict(weights), dict(parameters), source="averaged weights")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
