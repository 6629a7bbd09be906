"""How a condition enters a backbone: as a vector beside the time embedding, or as tokens that images attend to.

The vector of every scheme starts at one standard deviation, set on purpose: PyTorch's 1.0 for embeddings is seven times as loud as
the time embedding that it is added to.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellbridge.networks.condition_table import ConditionTable
from cellbridge.networks.condition_tokens import SelfAttention, TokenEncoder, Tokens
from cellbridge.networks.padding import crop_to, pad_to_multiple
from cellbridge.typing import Images, Labels, Times


class Summed(nn.Module):
    """Tokens → vector: their normalised sum through one linear map."""

    def __init__(self, width: int, features: int, *, std: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.outward = _projection(width, features, std=std)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (batch, feature)."""
        vector: Tensor = self.outward(self.norm(tokens.pooled()))
        return vector


class Projected(nn.Module):
    """One-hot vectors, side by side, through a perceptron.

    The product of a one-hot vector with the first layer's matrix is one of its rows, which is what a learned token is; so this takes
    their sum, adds the bias and goes on.
    """

    def __init__(self, width: int, features: int, *, std: float):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.outward = _projection(width, features, std=std)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (batch, feature)."""
        vector: Tensor = self.outward(functional.silu(tokens.pooled() + self.bias))
        return vector


class AttendedThenProjected(nn.Module):
    """Tokens attend to one another, so that what a dose means may depend on compound and time; a learned query gathers them."""

    def __init__(self, width: int, features: int, *, std: float):
        super().__init__()
        self.query = nn.Parameter(torch.randn(width))
        self.attention = SelfAttention(width)
        self.norm = nn.LayerNorm(width)
        self.outward = _projection(width, features, std=std)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (batch, feature)."""
        query = self.query.to(tokens.values.dtype).expand(len(tokens.values), 1, -1)
        values = torch.cat([query, tokens.values], 1)
        keep = functional.pad(tokens.keep, (1, 0), value=True)
        vector: Tensor = self.outward(self.norm(self.attention(values, keep)[:, 0]))
        return vector


class Conditioner(nn.Module):
    """Labels → what the backbone is told: a vector, or the tokens themselves.

    Parameters
    ----------
    to_vector : `Summed`, `Projected` or `AttendedThenProjected`; None hands the tokens on, for cross-attention.
    """

    def __init__(self, tokens: TokenEncoder, to_vector: nn.Module | None):
        super().__init__()
        self.tokens = tokens
        self.to_vector = to_vector

    @property
    def table(self) -> ConditionTable:
        """What the rows stand for."""
        return self.tokens.table

    @property
    def reads_texts(self) -> bool:
        """Whether a compound that was not trained on can be asked for."""
        return self.tokens.compound != "learned"

    def forward(self, labels: Labels, t: Times) -> Any:
        """Return a vector (batch, feature), or `Tokens`."""
        tokens = self.tokens(labels, t)
        return tokens if self.to_vector is None else self.to_vector(tokens)

    @torch.no_grad()
    def rows(self) -> dict[str, Tensor]:
        """Return what every row of the table gives, as files hold it; nothing where it also depends on the time."""
        if "time" in self.tokens.kinds:
            return {}
        labels = torch.arange(len(self.table), device=self.tokens.compound_rows.device)
        found = self.eval()(labels, labels.float())
        if isinstance(found, Tokens):
            return {"tokens": found.values.cpu().contiguous(), "keep": found.keep.cpu().contiguous()}
        return {"vectors": found.cpu().contiguous()}


def condition_rows(network: nn.Module) -> Tensor | None:
    """Return what stands for each row of a network's conditions, (row, feature), of a scheme's vectors or tokens or else of its embedding.

    None where there is neither, and where it depends on the time. Wrappers are looked through.
    """
    for module in network.modules():
        if isinstance(module, Conditioner):
            rows = module.rows()
            if "tokens" in rows:
                return (rows["tokens"] * rows["keep"][..., None]).flatten(1)
            return rows.get("vectors")
    named = network.named_parameters()
    return next((p.detach() for name, p in named if name.endswith("class_embedding.weight")), None)


Entry = Callable[[Any, Images, Times, Any], Images]


class ConditionedBackbone(nn.Module):
    """A conditioning scheme and a diffusers backbone, called as diffusers' backbones are.

    Parameters
    ----------
    conditioner : None hands labels on as they are, to a backbone that has an embedding of its own.
    entry : (backbone, x_t, t, what the conditioner gave) → output.
    multiple_of : images whose sides are no multiple are reflected at their far edges until they are, and cropped again.
    """

    def __init__(self, backbone: nn.Module, conditioner: Conditioner | None, entry: Entry, *, multiple_of: int = 1):
        super().__init__()
        self.backbone = backbone
        self.conditioner = conditioner
        self.entry = entry
        self.multiple_of = multiple_of

    def forward(self, x_t: Images, t: Times, class_labels: Labels, *, return_dict: bool = False) -> tuple[Images]:
        """Return the output, alone in a tuple."""
        t = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
        condition = class_labels if self.conditioner is None else self.conditioner(class_labels, t)
        output = self.entry(self.backbone, pad_to_multiple(x_t, self.multiple_of), t, condition)
        return (crop_to(output, x_t),)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed."""
        return bool(self.backbone.is_gradient_checkpointing)

    def enable_gradient_checkpointing(self) -> None:
        """Keep only what goes into each block of the backbone."""
        self.backbone.enable_gradient_checkpointing()  # type: ignore[operator]

    def disable_gradient_checkpointing(self) -> None:
        """Keep every activation again."""
        self.backbone.disable_gradient_checkpointing()  # type: ignore[operator]


def as_class_labels(backbone: Any, x_t: Images, t: Times, condition: Tensor) -> Images:
    """Give a row or a vector as `class_labels`, which a UNet adds to its time embedding (or sets beside it)."""
    output: Images = backbone(x_t, t, class_labels=condition, return_dict=False)[0]
    return output


def without_cross_attention(backbone: Any, x_t: Images, t: Times, condition: Tensor) -> Images:
    """The same for a `UNet2DConditionModel` whose blocks attend to nothing but the image."""
    output: Images = backbone(x_t, t, None, class_labels=condition, return_dict=False)[0]
    return output


def by_cross_attention(backbone: Any, x_t: Images, t: Times, condition: Tokens) -> Images:
    """Let the image attend to the tokens."""
    output: Images = backbone(
        x_t,
        timestep=t,
        encoder_hidden_states=condition.values,
        encoder_attention_mask=condition.keep,
        return_dict=False,
    )[0]
    return output


def late(backbone: Any, x_t: Images, t: Times, condition: Tensor) -> Images:
    """Add a vector to the time embedding from the middle of a `UNet2DModel` on: what goes down knows the time alone.

    With a vector of zeros this is the network's own forward pass.
    """
    early = backbone.time_embedding(backbone.time_proj(t).to(backbone.dtype))
    embedding = early + condition.to(early.dtype)
    stream = backbone.conv_in(x_t)
    skips = [stream]
    for block in backbone.down_blocks:
        stream, given = block(hidden_states=stream, temb=early)
        skips.extend(given)
    stream = backbone.mid_block(stream, embedding)
    for block in backbone.up_blocks:
        taken = len(block.resnets)
        stream = block(stream, tuple(skips[-taken:]), embedding)
        del skips[-taken:]
    output: Images = backbone.conv_out(backbone.conv_act(backbone.conv_norm_out(stream)))
    return output


def _projection(width: int, features: int, *, std: float) -> nn.Linear:
    """Return a linear map from features of unit scale to features of a given one."""
    layer = nn.Linear(width, features)
    nn.init.normal_(layer.weight, std=std / math.sqrt(width))
    nn.init.zeros_(layer.bias)
    return layer
