"""Models of conditions → a translator."""

from collections.abc import Mapping
from typing import Literal

from cellbridge.assembly.bases import Model
from cellbridge.assembly.solving import build_inversion, build_sampler, guided
from cellbridge.conditions import Condition
from cellbridge.config import SolverConfig
from cellbridge.errors import ConditionError, did_you_mean
from cellbridge.translators.ddib import Ddib
from cellbridge.translators.translator import Translator

TRANSLATORS = {"ddib": Ddib}


def build_translator(
    method: str,
    models: Mapping[Condition, Model],
    *,
    source: Condition,
    solver: SolverConfig,
    x_T: Literal["inverted", "fresh"],
) -> Translator:
    """Build a translator from the source's model to every condition that has one.

    Raises
    ------
    ConditionError : nothing models the source.
    """
    if source not in models:
        raise ConditionError(
            f'no model of the source "{source.name}" was given: pass its adapter, from `cellbridge finetune --condition '
            f'"{source.name}"`, as --adapter as well.{did_you_mean(source.name, [c.name for c in models])}'
        )
    return TRANSLATORS[method](
        models[source].denoiser,
        models[source].row,
        {condition: (guided(model.denoiser, solver, model.card), model.row) for condition, model in models.items()},
        inversion=build_inversion(solver),
        sampler=build_sampler(solver),
        x_T=x_T,
    )
