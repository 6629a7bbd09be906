"""Does each stain carry its part? Every channel of every model's outputs, beside the copy."""

from typing import Any

from cellbridge.evaluation.sections import Column, absent, share, table
from cellbridge.evaluation.target import Part, Target, images_of
from cellbridge.metrics.channels import ChannelEvidence, Stained, channel_evidence

_ABOUT = (
    "Empty: share of outputs with less structure in this stain than nearly all real cells. Noisy: with more of what smoothing by one pixel takes "
    "away. Alike: more like another output than nearly all pairs of real cells. Seen as: the stain that most outputs are taken for. "
    "Slope: of the effect on this stain; 0 is a copy, 1 the right size. Intervals hold for all stains together."
)
_COLUMNS = (
    share("empty", "empty"),
    share("noisy", "noisy"),
    share("repeated", "alike"),
    Column("seen_as", "seen as"),
    share("seen", "share"),
    share("own_real", "real cells, as themselves"),
    Column("changes", "real cells change"),
    Column("slope", "slope"),
    Column("cosine", "cosine"),
    Column("words", "so"),
)
_TITLE = "Stain by stain"


def judge_stains(target: Target) -> Part:
    """Judge every stain of every model, and of the copies beside it."""
    comparison, channels = target.comparison, target.reference.info.channels
    real = target.rows_on(comparison.target, target.plates)
    control = target.rows_on(comparison.source, target.plates)
    if min(len(real), len(control), len(comparison.sources)) < 4:
        return Part(absent("channels", _TITLE, "too few real cells of the target or of the control on these plates"))
    of_real, of_control = (_stained(target, rows) for rows in (real, control))
    copy = target.require("copy")
    sources = Stained(images_of(copy), target.plates, copy.blocks)
    part, rows = Part({}), []
    for arm in (*target.models, copy):
        found = channel_evidence(
            Stained(images_of(arm), target.plates, arm.blocks),
            sources,
            of_real,
            of_control,
            channels=channels,
            level=target.draws.charge_level,
            **target.draws.settings,
        )
        rows += [
            {"key": arm.key, "name": f"{arm.name}, {one.channel}", "kind": arm.kind} | _cells(one) for one in found
        ]
        if arm.kind == "model":
            part.evidence[arm.key] = [one.to_dict() for one in found]
    part.section = table("channels", _TITLE, _ABOUT, columns=_COLUMNS, rows=rows)
    return part


def _stained(target: Target, rows: Any) -> Stained:
    sample = target.real_sample(rows, target.sights.judges.extractors[0].name)
    return Stained(target.sights.reference.images(rows).numpy(), sample.plates, sample.blocks)


def _cells(found: ChannelEvidence) -> dict[str, Any]:
    words = {
        "seen_as": found.seen_as,
        "changes": "yes" if found.changes else "not seen",
        "words": "; ".join(found.findings) or "carries its part",
    }
    cells = {name: getattr(found, name) for name in ("empty", "noisy", "repeated", "seen", "own_real")}
    effect = {"slope": found.effect.slope, "cosine": found.effect.cosine} if found.changes else {}
    return cells | effect | {name: {"text": text} for name, text in words.items()}
