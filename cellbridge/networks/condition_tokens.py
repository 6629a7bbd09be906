"""A condition as tokens: its compound (a learned row, or its name or SMILES read), its dose, its plate, and the time of the step.

Each token has a null of its own, which stands for what is not known, and which dropping the token now and then trains.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cellbridge.networks.condition_table import FINGERPRINT_BITS, ConditionTable
from cellbridge.typing import Labels, Times

Token = Literal["compound", "dose", "plate", "time"]
Compound = Literal["learned", "characters", "fingerprint"]

_WAVES = 6
_DECADES = 4.0
"""Doses of 1e-4 to 1e4 micromolar span one period of the slowest wave."""
_LARGEST_HEAD = 32
_BYTES = 257
"""256 bytes, and what fills a text up."""


@dataclass(frozen=True)
class Tokens:
    """What a condition is described by.

    Parameters
    ----------
    values : (batch, token, width), of unit scale.
    keep : (batch, token), False where a shorter text was filled up.
    """

    values: Tensor
    keep: Tensor

    def pooled(self) -> Tensor:
        """Return the sum of the tokens over the root of their number: (batch, width)."""
        kept = self.keep.to(self.values.dtype)
        return (self.values * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).sqrt()


class SelfAttention(nn.Module):
    """Pre-normalised self-attention and a small perceptron, each around a residual: (batch, token, width) → the same."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // max(d for d in range(1, min(width, _LARGEST_HEAD) + 1) if width % d == 0)
        self.norm = nn.LayerNorm(width)
        self.joint = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, values: Tensor, keep: Tensor) -> Tensor:
        """Attend to the kept tokens; every image keeps at least one."""
        joint = self.joint(self.norm(values)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = joint.unbind()
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=keep[:, None, None, :])
        values = values + self.outward(attended.transpose(1, 2).flatten(2))
        result: Tensor = values + self.perceptron(values)
        return result


class DoseEncoder(nn.Module):
    """A dose on a logarithmic scale: u = log10(dose / µM) / 4, and sin and cos of 2^k pi u for k = 0 …, through a perceptron.

    References
    ----------
    Tancik et al. 2020, "Fourier features let networks learn high frequency functions", arXiv:2006.10739.
    """

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * _WAVES + 1, width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width)
        )

    def forward(self, log_dose: Tensor) -> Tensor:
        """Return (batch, width)."""
        u = (log_dose / _DECADES)[:, None]
        phase = u * math.pi * 2.0 ** torch.arange(_WAVES, device=u.device)
        features: Tensor = self.layers(torch.cat([u, phase.sin(), phase.cos()], 1))
        return features


class TimeEncoder(nn.Module):
    """The diffusion time by the usual sinusoids, through a perceptron."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width)
        )
        self.width = width

    def forward(self, t: Times) -> Tensor:
        """Return (batch, width)."""
        rates = torch.exp(-math.log(10_000) * torch.arange(self.width, device=t.device) / self.width)
        phase = t.float()[:, None] * rates
        features: Tensor = self.layers(torch.cat([phase.sin(), phase.cos()], 1))
        return features


class CharacterEncoder(nn.Module):
    """Names or SMILES byte by byte: embedding, learned position, one layer of attention, one token per byte."""

    def __init__(self, width: int, *, longest: int):
        super().__init__()
        self.bytes = nn.Embedding(_BYTES, width)
        self.positions = nn.Parameter(torch.randn(longest, width) / math.sqrt(2))
        nn.init.normal_(self.bytes.weight, std=1 / math.sqrt(2))
        self.attention = SelfAttention(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, characters: Tensor) -> Tensor:
        """Return (batch, character, width) of (batch, character); 0 fills up."""
        keep = characters > 0
        keep = keep | ~keep.any(1, keepdim=True)  # a text of no characters attends to what fills it up
        values = self.bytes(characters) + self.positions[: characters.shape[1]]
        tokens: Tensor = self.norm(self.attention(values, keep))
        return tokens


class FingerprintEncoder(nn.Module):
    """A hashed fingerprint through a perceptron: (batch, bit) → (batch, 1, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FINGERPRINT_BITS, width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width)
        )

    def forward(self, fingerprints: Tensor) -> Tensor:
        """Return one token per image."""
        token: Tensor = self.layers(fingerprints)
        return token[:, None]


class TokenEncoder(nn.Module):
    """Labels → tokens, by a table that says what they stand for.

    `class_embedding` has one row per condition in any case, as adapters expect: the compound's token where it is learned, and
    otherwise an offset to what was read, zero and frozen until an adapter trains it.

    Parameters
    ----------
    tokens : which of compound, dose, plate and time to give.
    compound : `learned` takes one row per compound (per condition, where there is no dose token); `characters` and `fingerprint`
        read its text, so that a compound which was not trained on can be asked for.
    dropout : probability that a token is replaced by its null in training, for each image and token apart.
    text_length : bytes of the longest text that `characters` reads.
    """

    compound_rows: Tensor
    log_doses: Tensor
    texts: Tensor

    def __init__(
        self,
        table: ConditionTable,
        *,
        tokens: tuple[Token, ...],
        compound: Compound = "learned",
        width: int = 64,
        dropout: float = 0.1,
        text_length: int = 128,
    ):
        super().__init__()
        self.kinds, self.compound, self.width, self.dropout = tokens, compound, width, dropout
        self.text_length = text_length
        self.class_embedding = nn.Embedding(len(table), width)
        self.nulls = nn.ParameterDict({kind: torch.randn(width) for kind in tokens if kind != "time"})
        self.encoders = nn.ModuleDict()
        if compound != "learned":
            nn.init.zeros_(self.class_embedding.weight).requires_grad_(False)
            reader = (
                CharacterEncoder(width, longest=text_length) if compound == "characters" else FingerprintEncoder(width)
            )
            self.encoders["compound"] = reader
        if "dose" in tokens:
            self.encoders["dose"] = DoseEncoder(width)
        if "plate" in tokens:
            self.encoders["plate"] = nn.Embedding(len(table.plates) + 1, width)
        if "time" in tokens:
            self.encoders["time"] = TimeEncoder(width)
        self.describe(table)

    def describe(self, table: ConditionTable) -> None:
        """Take a table of at least as many rows; the offsets of further ones are zero."""
        old = self.class_embedding
        if len(table) > len(old.weight):
            wider = nn.Embedding(len(table), self.width, device=old.weight.device, dtype=old.weight.dtype)
            with torch.no_grad():
                wider.weight.zero_()[: len(old.weight)] = old.weight
            self.class_embedding = wider.requires_grad_(old.weight.requires_grad)
        self.table = table
        rows = table.compound_rows() if "dose" in self.kinds else torch.arange(len(table))
        described = {"compound_rows": rows, "log_doses": table.log_doses(), "texts": self._texts(table)}
        for name, values in described.items():
            self.register_buffer(name, values.to(old.weight.device), persistent=False)

    def forward(self, labels: Labels, t: Times) -> Tokens:
        """Return the tokens of each image, the time's first and the compound's next."""
        rows, plates = labels % len(self.table), labels // len(self.table)
        parts = []
        if "time" in self.kinds:
            parts.append(_one(self.encoders["time"](t)))
        if "compound" in self.kinds:
            parts.append(self._compound(rows))
        if "dose" in self.kinds:
            log_dose = self.log_doses[rows]
            known = ~log_dose.isnan() & (rows > 0)
            parts.append(_one(self._or_null("dose", self.encoders["dose"](log_dose.nan_to_num()), known)))
        if "plate" in self.kinds:
            parts.append(_one(self._or_null("plate", self.encoders["plate"](plates), plates > 0)))
        return Tokens(torch.cat([part.values for part in parts], 1), torch.cat([part.keep for part in parts], 1))

    def _texts(self, table: ConditionTable) -> Tensor:
        if self.compound == "characters":
            return table.characters(longest=self.text_length)
        return table.fingerprints() if self.compound == "fingerprint" else torch.zeros(len(table), 0)

    def _compound(self, rows: Tensor) -> Tokens:
        offset = self.class_embedding(self.compound_rows[rows])
        if self.compound == "learned":
            return _one(self._or_null("compound", offset, rows > 0))
        read = self.encoders["compound"](self.texts[rows]) + offset[:, None]
        keep = (
            self.texts[rows] > 0 if self.compound == "characters" else torch.ones_like(read[..., 0], dtype=torch.bool)
        )
        known = self._known(rows > 0)
        first = torch.arange(read.shape[1], device=rows.device) == 0
        null = (self.nulls["compound"] * first[:, None]).to(read.dtype)
        values = torch.where(known[:, None, None], read, null)
        return Tokens(values, torch.where(known[:, None], keep, first))

    def _or_null(self, kind: str, values: Tensor, known: Tensor) -> Tensor:
        return torch.where(self._known(known)[:, None], values, self.nulls[kind].to(values.dtype))

    def _known(self, known: Tensor) -> Tensor:
        """Forget some, in training; like dropout, by PyTorch's default generator."""
        if not self.training or self.dropout == 0:
            return known
        return known & (torch.rand(len(known), device=known.device) >= self.dropout)


def _one(values: Tensor) -> Tokens:
    return Tokens(values[:, None], torch.ones(len(values), 1, dtype=torch.bool, device=values.device))
