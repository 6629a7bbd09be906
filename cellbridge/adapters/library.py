"""Adapters on disk: peft directories, each bound to its base by hash."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from cellbridge.adapters.lora import copy_weights
from cellbridge.errors import ModelError, in_one_line
from cellbridge.networks.unet import require_same_keys

if TYPE_CHECKING:
    from diffusers import UNet2DModel
    from peft import PeftModel

BINDING = "binding.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def save_adapter(
    model: nn.Module, directory: Path, *, base_sha256: str, ema: Mapping[str, Tensor] | None = None
) -> None:
    """Write `adapter_config.json`, `adapter_model.safetensors` and, beside them, the base's hash in `binding.json`.

    `PeftModel.from_pretrained(UNet2DModel.from_pretrained(base), directory)` opens the directory outside cellbridge.

    Parameters
    ----------
    model : from `attach`; it is left as it is.
    base_sha256 : hash that `load_adapter` will ask for.
    ema : averaged weights by parameter name, to be saved in place of the model's own.

    Raises
    ------
    ModelError : `ema` does not hold exactly the trainable parameters.
    """
    saved = cast("PeftModel", copy.deepcopy(model))
    if ema is not None:
        copy_weights(saved, ema)
    for config in saved.peft_config.values():
        config.base_model_name_or_path = None  # the path of this machine's base; its hash is what counts
    saved.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # peft's empty model card
    _write_sorted(directory / CONFIG)
    (directory / BINDING).write_text(json.dumps({"base_sha256": base_sha256}, indent=2) + "\n", encoding="utf-8")


def load_adapter(base_network: nn.Module, directory: Path, *, base_sha256: str) -> "PeftModel":
    """Attach a saved adapter to its base; `base_network` is changed by this, so hand in a copy of a base that others use.

    Raises
    ------
    ModelError : the adapter belongs to another base (both hashes are named), a file is missing or damaged, or its weights are not
        exactly those that its configuration asks for.
    """
    bound_to = _read_binding(directory)
    if bound_to != base_sha256:
        raise ModelError(
            f"{directory}: this adapter belongs to the base {bound_to}, but the base given is {base_sha256}. "
            "Give the base it was fine-tuned from, or fine-tune it again on this one."
        )
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = LoraConfig.from_pretrained(str(directory), local_files_only=True)
        weights = load_file(directory / WEIGHTS)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = in_one_line(error)
        raise ModelError(f"{directory}: is no readable peft directory ({CONFIG}, {WEIGHTS}): {reason}") from None
    config.base_model_name_or_path = None
    model = get_peft_model(base_network, config)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    require_same_keys(weights, expected, source=str(directory / WEIGHTS))
    set_peft_model_state_dict(model, weights)
    return model


def merge(model: nn.Module) -> "UNet2DModel":
    """Return a plain backbone with W + (alpha / rank) B A in place of W; the adapted model is left as it is."""
    return cast("PeftModel", copy.deepcopy(model)).merge_and_unload()


def _read_binding(directory: Path) -> str:
    try:
        return str(json.loads((directory / BINDING).read_text(encoding="utf-8"))["base_sha256"])
    except FileNotFoundError:
        raise ModelError(
            f"{directory}: has no {BINDING}, so its base is not known. It was not saved by cellbridge."
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f'{directory / BINDING}: is damaged; expected {{"base_sha256": "…"}}. Fine-tune the adapter again.'
        ) from None


def _write_sorted(path: Path) -> None:
    """Put the lists that peft writes in the order of a set into one order, so that equal adapters are equal files."""
    values = json.loads(path.read_text(encoding="utf-8"))
    ordered = {key: sorted(value) if isinstance(value, list) else value for key, value in sorted(values.items())}
    path.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
