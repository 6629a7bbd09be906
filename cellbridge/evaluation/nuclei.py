"""Nuclei of outputs beside those of their sources and, where known, of the counterfactuals: described, never a verdict."""

from typing import Any

from cellbridge.evaluation.sections import Column, absent, share, table
from cellbridge.evaluation.target import Part, Target, images_of
from cellbridge.metrics.content import Nuclei, compare_nuclei, nucleus_estimates

_STAINS = ("dna", "dapi", "hoechst", "nucleus")
_ABOUT = (
    "Nuclei are found alike in both images of a cell. A compound that shrinks nuclei lowers overlap and area rightly: read them against the "
    "counterfactual where there is one, and against that row of the counterfactual itself where outputs are set against their sources."
)
_COLUMNS = (
    Column("beside", "beside"),
    Column("n", "nuclei", digits=0),
    Column("shift_px", "moved by", digits=2, unit="px"),
    Column("iou", "overlap (IoU)"),
    Column("area_ratio", "area / area"),
    share("same_count", "as many nuclei"),
    Column("count_difference", "nuclei more", digits=2),
)
_TITLE = "Nuclei"


def judge_nuclei(target: Target) -> Part:
    """Describe the nuclei of every model, and of the counterfactual."""
    names = [channel.casefold() for channel in target.reference.info.channels]
    dna = next((names.index(name) for name in _STAINS if name in names), None)
    masks = target.reference.masks(target.comparison.sources)
    if dna is None or masks is None:
        return Part(absent("nuclei", _TITLE, "no DNA stain or no masks"))
    truth = target.arm("counterfactual")
    beside = {"its source": target.require("copy")} | ({} if truth is None else {"the counterfactual": truth})
    part, rows = Part({}), []
    for arm in (*target.models, *(() if truth is None else (truth,))):
        for words, other in beside.items():
            if arm.key == other.key:
                continue
            found = compare_nuclei(images_of(arm)[:, dna], images_of(other)[:, dna], masks == 2)
            row: dict[str, Any] = {"key": arm.key, "name": arm.name, "kind": arm.kind, "beside": {"text": words}}
            estimates = nucleus_estimates(found, arm.blocks, **target.draws.settings)
            rows.append(row | {"n": estimates["iou"].n if "iou" in estimates else 0} | estimates)
            if other.key == "copy":
                part.cells[arm.key] = _columns(found)
    part.section = table("nuclei", _TITLE, _ABOUT, columns=_COLUMNS, rows=rows)
    return part


def _columns(found: Nuclei) -> dict[str, Any]:
    return {"nucleus_shift_px": found.shift_px, "nucleus_iou": found.iou, "nucleus_area_ratio": found.area_ratio}
