"""What training an adapter holds and saves, against training the whole backbone: exact bytes, counted without allocating them.

    python tests/benchmarks/adapter_state.py [--ranks 4 8 16] [--json]

Counted are gradients, AdamW's state, the moving average, and a checkpoint's tensor files on disk. The frozen base and the activations
are not: an adapter keeps nearly all activations of full training.
"""

import argparse
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from cellbridge.adapters import lora
from cellbridge.config import AdapterConfig, NetworkConfig, TrainingConfig
from cellbridge.networks.unet import build_unet
from cellbridge.training import optim

BACKBONE = NetworkConfig(widths=(128, 256, 384, 512), layers_per_block=2, attention_levels=(3,))
CHANNELS, CONDITIONS, SIZE_PX = 5, 4, 64
GOAL = 0.03
"""The most that an adapter's training state may be of full fine-tuning's."""


@dataclass(frozen=True)
class StateBytes:
    """Bytes of a training's state, beside the weights that the network holds anyway."""

    trainable: int
    gradients: int
    optimizer: int
    ema: int
    checkpoint: int
    """Weights, average and optimiser state in safetensors files, their headers included."""

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self.gradients + self.optimizer + self.ema


def count_state(module: nn.Module) -> StateBytes:
    """Count the training state of the parameters that require a gradient; `module` may lie on the device "meta"."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = optim.make_optimizer(list(parameters.values()), TrainingConfig())
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    state = optim.state_tensors(optimizer, parameters)
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    weights = {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}
    files = (weights, dict(parameters), state)
    optimizer.zero_grad(set_to_none=True)
    return StateBytes(
        trainable=sum(p.numel() for p in parameters.values()),
        gradients=_bytes(gradients),
        optimizer=_bytes(state.values()),
        ema=_bytes(parameters.values()),
        checkpoint=sum(_file_bytes(tensors) for tensors in files),
    )


def compare(
    network: NetworkConfig = BACKBONE,
    adapters: Sequence[AdapterConfig] = (AdapterConfig(),),
    *,
    channels: int = CHANNELS,
    conditions: int = CONDITIONS,
    size_px: int = SIZE_PX,
) -> tuple[StateBytes, list[StateBytes]]:
    """Return the state of full fine-tuning and of each adapter on the same backbone."""
    with torch.device("meta"):
        full = count_state(build_unet(network, channels=channels, size_px=size_px, conditions=conditions))
        counted = []
        for config in adapters:
            base = build_unet(network, channels=channels, size_px=size_px, conditions=conditions)
            adapted = lora.attach(base, rank=config.rank, alpha=config.alpha, targets=config.targets)
            counted.append(count_state(adapted))
    return full, counted


def largest_rank(full: StateBytes, *, limit: int = 16, goal: float = GOAL) -> int:
    """Return the largest rank up to `limit` whose state in memory and on disk stays within the goal; 0 where none does."""

    def share(rank: int) -> float:
        _, (adapter,) = compare(adapters=[AdapterConfig(rank=rank)])
        return max(adapter.held / full.held, adapter.checkpoint / full.checkpoint)

    return bisect_right(range(1, limit + 1), goal, key=share)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of a safetensors file of float32 tensors: eight bytes of length, the header padded to eight, the data."""
    header, offset = {}, 0
    for name, tensor in sorted(tensors.items()):
        assert tensor.dtype == torch.float32
        end = offset + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + (length + 7) // 8 * 8 + offset


def _table(rows: Mapping[str, StateBytes]) -> str:
    full = rows["full"]
    lines = [f"{'':>10} {'trainable':>11} {'gradients':>11} {'AdamW':>11} {'EMA':>11} {'held':>16} {'checkpoint':>16}"]
    for name, row in rows.items():
        figures = [f"{size / 1e6:8.2f} MB" for size in (row.gradients, row.optimizer, row.ema)]
        shares = [
            f"{size / 1e6:8.2f} {100 * size / whole:5.2f} %"
            for size, whole in ((row.held, full.held), (row.checkpoint, full.checkpoint))
        ]
        lines.append(f"{name:>10} {row.trainable / 1e6:9.3f} M {' '.join(figures)} {'  '.join(shares)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    given = parser.parse_args()
    full, counted = compare(adapters=[AdapterConfig(rank=rank) for rank in given.ranks])
    rows = {"full": full, **{f"rank {rank}": row for rank, row in zip(given.ranks, counted, strict=True)}}
    fits = largest_rank(full)
    if given.json:
        rows_json = {name: asdict(row) | {"held": row.held} for name, row in rows.items()}
        print(json.dumps({"rows": rows_json, "goal": GOAL, "largest_rank": fits, "default_rank": AdapterConfig().rank}))
        return
    print(_table(rows))
    print(f"largest rank within {100 * GOAL:g} %: {fits} (default {AdapterConfig().rank})")


if __name__ == "__main__":
    main()
