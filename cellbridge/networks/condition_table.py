"""What the rows of a condition embedding stand for, as a network can read it: compound, dose, text, and plates beside them.

A label is one int64 per image. Below the number of rows it is a row, and the plate is not said; a known plate adds a multiple of
the number of rows, so that whatever hands labels on (samplers, guidance, translators) knows nothing of plates.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cellbridge.conditions import Condition
from cellbridge.errors import ConfigError, did_you_mean

NULL = 0
"""The row of no condition, and the plate that is not known."""

FINGERPRINT_BITS = 512
_LONGEST_GRAM = 4


@dataclass(frozen=True)
class ConditionTable:
    """One row per condition, row 0 the one of no condition; one number per plate, 0 the plate that is not known.

    Parameters
    ----------
    names : `compound@dose` of each row, "" for row 0.
    texts : what an encoder of names or SMILES reads of each row.
    plates : known plates, numbered from 1.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    plates: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, names: Sequence[str], *, smiles: Mapping[str, str] | None = None, plates: Sequence[str] = ()
    ) -> "ConditionTable":
        """Describe conditions by their compounds' names or, where `smiles` is given (compound → SMILES), by those.

        Raises
        ------
        ConfigError : a compound has no SMILES.
        """
        return cls(tuple(names), tuple(_text(name, smiles) for name in names), tuple(plates))

    def __len__(self) -> int:
        return len(self.names)

    def row(self, name: str) -> int:
        """Return the row of a condition; an unknown one has that of no condition."""
        return self.names.index(name) if name in self.names else NULL

    def label(self, row: int, *, plate: str | None = None) -> int:
        """Return the label of a row on a plate; an unknown plate is as good as none."""
        number = self.plates.index(plate) + 1 if plate in self.plates else NULL
        return number * len(self) + row

    def appended(self, name: str, text: str | None = None) -> "ConditionTable":
        """Return the table with one more row."""
        return replace(
            self, names=(*self.names, name), texts=(*self.texts, _text(name, None) if text is None else text)
        )

    def renamed(self, row: int, name: str, text: str | None = None) -> "ConditionTable":
        """Return the table with another condition in a row."""
        names, texts = list(self.names), list(self.texts)
        names[row], texts[row] = name, _text(name, None) if text is None else text
        return replace(self, names=tuple(names), texts=tuple(texts))

    def compound_rows(self) -> Tensor:
        """Return, for each row, the first row of the same compound: (row,), int64."""
        compounds = [Condition.parse(name).compound for name in self.names]
        return torch.tensor([compounds.index(compound) for compound in compounds])

    def log_doses(self) -> Tensor:
        """Return log10 of each row's dose in micromolar, NaN where there is none (or zero): (row,), float32."""
        doses = [Condition.parse(name).dose_um for name in self.names]
        return torch.tensor([math.log10(dose) if dose else math.nan for dose in doses])

    def characters(self, *, longest: int) -> Tensor:
        """Return the UTF-8 bytes of each row's text, from 1 on, filled up with 0: (row, character), int64.

        Raises
        ------
        ConfigError : a text is longer than `longest` bytes.
        """
        encoded = [text.encode() for text in self.texts]
        for name, text in zip(self.names, encoded, strict=True):
            if len(text) > longest:
                raise ConfigError(
                    f'the text of condition "{name}" has {len(text)} bytes, and the encoder reads {longest}. '
                    "Shorten it, or pretrain with a larger network.conditioning.text_length."
                )
        width = max(1, *(len(text) for text in encoded))
        return torch.tensor([[byte + 1 for byte in text] + [0] * (width - len(text)) for text in encoded])

    def fingerprints(self) -> Tensor:
        """Return the hashed counts of each text's n-grams of 1 to 4 characters, log(1 + n): (row, bit), float32.

        Like a folded Morgan fingerprint, but of the string's substrings and not of the molecule's circular substructures: it needs
        no chemistry library, and two ways of writing one molecule differ.
        """
        counts = torch.zeros(len(self), FINGERPRINT_BITS)
        for row, text in enumerate(self.texts):
            marked = f"^{text}$"
            for n in range(1, _LONGEST_GRAM + 1):
                for start in range(len(marked) - n + 1):
                    counts[row, zlib.crc32(marked[start : start + n].encode()) % FINGERPRINT_BITS] += 1
        return counts.log1p()


def _text(name: str, smiles: Mapping[str, str] | None) -> str:
    compound = Condition.parse(name).compound
    if not smiles or compound == "" or compound.startswith("<"):
        return compound
    if compound not in smiles:
        raise ConfigError(
            f'network.conditioning.smiles has no entry for the compound "{compound}".{did_you_mean(compound, smiles)} '
            "Add its SMILES, or set network.conditioning.text: name."
        )
    return smiles[compound]
