"""A network's weights on disk: the backbone as a diffusers folder, and what conditions it beside that.

`unet/` holds the backbone in its stock layout. `conditioning/` holds the conditioner's weights and, where a condition is one vector or
one set of tokens at all times, those of every row (`rows.safetensors`: `vectors`, or `tokens` and `keep`), which is what the backbone
takes outside as `class_labels`, or as `encoder_hidden_states` and `encoder_attention_mask`. A DiT has them in its own tables.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cellbridge.errors import ModelError, in_one_line
from cellbridge.networks.conditioning import ConditionedBackbone
from cellbridge.networks.dit import TABLE, with_tables
from cellbridge.networks.unet import WEIGHTS, load_unet, require_same_keys

CONDITIONING = "conditioning"
CONDITIONER = "conditioner.safetensors"
ROWS = "rows.safetensors"
TABLE_FILE = "table.json"


def stock(network: nn.Module) -> nn.Module:
    """Return the diffusers backbone of a network, as it is to be published."""
    if not isinstance(network, ConditionedBackbone):
        return network
    backbone: Any = network.backbone
    if network.conditioner is None or type(backbone).__name__ != "DiTTransformer2DModel":
        return network.backbone
    return with_tables(backbone, network.conditioner.rows()["vectors"].to(backbone.device))


def save_conditioning(network: nn.Module, directory: Path) -> None:
    """Write `conditioning/` into a model directory, where there is a conditioner."""
    if not isinstance(network, ConditionedBackbone) or network.conditioner is None:
        return
    folder = directory / CONDITIONING
    folder.mkdir()
    weights = network.conditioner.state_dict()
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / CONDITIONER)
    rows = network.conditioner.rows()
    if rows:
        save_file(rows, folder / ROWS)
    table = network.conditioner.table
    text = json.dumps(
        {"names": table.names, "texts": table.texts, "plates": table.plates}, indent=2, ensure_ascii=False
    )
    (folder / TABLE_FILE).write_text(f"{text}\n", encoding="utf-8")


def load_weights(network: nn.Module, directory: Path) -> None:
    """Put a model directory's weights into a network that was built as it was, every key and shape checked.

    Raises
    ------
    ModelError : a file is missing or damaged, or its weights are not exactly those of the network.
    """
    if not isinstance(network, ConditionedBackbone):
        weights = dict(load_unet(directory / "unet").state_dict())
        require_same_keys(weights, dict(network.state_dict()), source=str(directory))
        network.load_state_dict(weights)
        return
    weights = _read(directory / "unet" / WEIGHTS)
    # The tables of a published DiT repeat what the conditioner gives.
    own = {name: value for name, value in weights.items() if not name.endswith(TABLE)}
    require_same_keys(own, dict(network.backbone.state_dict()), source=str(directory / "unet" / WEIGHTS))
    network.backbone.load_state_dict(own)
    if network.conditioner is not None:
        weights = _read(directory / CONDITIONING / CONDITIONER)
        source = str(directory / CONDITIONING / CONDITIONER)
        require_same_keys(weights, dict(network.conditioner.state_dict()), source=source)
        network.conditioner.load_state_dict(weights)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        reason = in_one_line(error)
        raise ModelError(f"{file}: is no readable safetensors file: {reason}. Train or copy the model again.") from None
