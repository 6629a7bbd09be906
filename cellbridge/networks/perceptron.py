"""A perceptron for vectors on a bridge: state, time and direction in, a vector out.

Reference: Tong et al. 2024, "Simulation-free Schrödinger bridges via score and flow matching", arXiv:2307.03672 (three hidden layers of
SELU units).
"""

from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init


@final
class BridgePerceptron(nn.Module):
    """Three hidden layers; its last layer starts at zero, so that an untrained network says nothing.

    Parameters
    ----------
    dimension : d, of states and outputs.
    width : of the hidden layers.
    generator : of the initial weights.
    """

    def __init__(self, dimension: int, *, width: int = 64, generator: Generator | None = None):
        super().__init__()
        self.width = width
        hidden = [skip_init(nn.Linear, size, width) for size in (dimension + 2, width, width)]
        last = skip_init(nn.Linear, width, dimension)
        self.layers = nn.Sequential(*(part for layer in hidden for part in (layer, nn.SELU())), last)
        for layer in hidden:
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, elapsed: Tensor, sign: Tensor) -> Tensor:
        """Return (batch, d), of states (batch, d), elapsed times in [0, 1] and directions 1 or -1, (batch,)."""
        seen = torch.cat([x, (2 * elapsed - 1)[:, None], sign[:, None]], dim=1)
        result: Tensor = self.layers(seen)
        return result
