"""Do outputs still look like their own plate? A classifier of plates, trained on real control cells of other wells, is asked."""

from cellbridge.evaluation.counting import wells_of
from cellbridge.evaluation.sections import Column, absent, share, table
from cellbridge.evaluation.target import Part, Target
from cellbridge.metrics.plate_leak import plate_leak

_ABOUT = (
    "Share of cells that are taken for their source's plate, by a classifier trained on control cells of other wells. Outputs that are seldom taken "
    "for it, less often than real target cells are, carry another plate's staining, or none."
)
_COLUMNS = (
    share("accuracy", "control cells"),
    share("chance", "by chance"),
    share("own_real", "real target cells"),
    share("own", "outputs"),
    share("gap", "difference"),
    Column("wrong", "most taken for"),
)
_TITLE = "Which plate do they come from?"


def judge_leak(target: Target) -> Part:
    """Judge every model by the plate that its outputs seem to come from."""
    name = target.sights.judges.extractors[0].name
    controls = target.rows_on(target.comparison.source, target.plates)
    real = target.rows_on(target.comparison.target, target.plates)
    control, of_real = target.real_sample(controls, name), target.real_sample(real, name)
    wells = wells_of(target.reference, target.comparison.sources), wells_of(target.reference, controls)
    rows = []
    for arm in target.models:
        found = plate_leak(
            target.sample(arm, name), control, of_real if len(real) else None, wells=wells, **target.draws.settings
        )
        if found is None:
            why = "one plate, or one well of the control on a plate"
            return Part(absent("plate_leak", _TITLE, why))
        wrong = "none" if found.wrong is None else f"{found.wrong[0]} ({100 * found.wrong[1]:.0f} %)"
        cells = {key: getattr(found, key) for key in ("accuracy", "chance", "own", "own_real", "gap")}
        rows.append({"key": arm.key, "name": arm.name, "kind": arm.kind, "wrong": {"text": wrong}} | cells)
    return Part(table("plate_leak", _TITLE, _ABOUT, columns=_COLUMNS, rows=rows))
