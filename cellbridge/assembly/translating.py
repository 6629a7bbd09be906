"""Models of conditions → a translator."""

from collections.abc import Collection, Mapping
from typing import Literal

from cellbridge.assembly.bases import Model
from cellbridge.assembly.solving import NO_GUIDES, Guides, build_inversion, build_sampler, guided_model
from cellbridge.conditions import Condition
from cellbridge.config import SolverConfig
from cellbridge.diffusion.prior import XTPrior
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
    x_T: Literal["inverted", "fresh"] | Mapping[Condition, XTPrior],
    targets: Collection[Condition] | None = None,
    guides: Guides = NO_GUIDES,
) -> Translator:
    """Build a translator from the source's model to every condition that has one, or to the targets alone.

    Raises
    ------
    ConditionError : nothing models the source, or a guide does not know a target.
    """
    if source not in models:
        raise ConditionError(
            f'no model of the source "{source.name}" was given: pass its adapter, from `cellbridge finetune --condition '
            f'"{source.name}"`, as --adapter as well.{did_you_mean(source.name, [c.name for c in models])}'
        )
    return TRANSLATORS[method](
        models[source].denoiser,
        models[source].row,
        {
            condition: (guided_model(model, solver, guides), model.row)
            for condition, model in models.items()
            if targets is None or condition in targets
        },
        inversion=build_inversion(solver),
        sampler=build_sampler(solver),
        x_T=x_T,
    )
