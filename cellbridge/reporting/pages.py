"""Templates into one self-contained page, with every value escaped and every picture inside it."""

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 170


def rendered(template: str, **values: Any) -> str:
    """Return the page of a template in `reporting/templates`; a value that the template names and that is not given is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def png_bytes(axes: "Axes") -> bytes:
    """Return the figure of some Axes as PNG."""
    buffer = BytesIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.06)
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    """Return a PNG or GIF as a link that holds it."""
    kind = "gif" if content.startswith(b"GIF8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
