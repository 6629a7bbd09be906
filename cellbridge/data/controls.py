"""What of a manifest selects and names the control: a query, `Metadata_column=value`, and a plain name."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_QUERY = r"^Metadata_[^=]+=.*$"


def _is_a_query(text: str) -> str:
    if not re.match(_QUERY, text):
        raise ValueError("is no query. Write Metadata_column=value, such as Metadata_pert_type=negcon")
    return text


def _is_a_name(text: str) -> str:
    if not text.strip() or "@" in text:
        raise ValueError('is no name of a condition without a dose. Write one without "@", such as DMSO')
    return text


Query = Annotated[str, AfterValidator(_is_a_query), Field(json_schema_extra={"pattern": _QUERY})]
"""With nothing after the `=`, the rows whose column is empty."""
ControlName = Annotated[str, AfterValidator(_is_a_name)]
