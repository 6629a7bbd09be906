"""Pictures of an evaluation: which cells are drawn beside one another, and the files they go to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cellbridge.conditions import Condition
from cellbridge.data.balance import draw_evenly
from cellbridge.data.comparison import Comparison
from cellbridge.data.store import Store
from cellbridge.metrics.gaussianity import radial_spectrum
from cellbridge.metrics.scorecard import Arm
from cellbridge.plots.composite import contrast_limits
from cellbridge.plots.montage import montage
from cellbridge.plots.panels import Panel, cell_panels, noise_panels

_SHOWN, _MONTAGE = 6, 12
"""Cells in the pictures of the same cells, and in a row of the montage."""


def cell_pictures(reference: Store, comparison: Comparison, arms: Sequence[Arm], *, extractor: str) -> dict[str, Panel]:
    """Draw the same cells in every arm, and cells of the null rows and of the real target.

    Parameters
    ----------
    extractor : whose features find the real cell nearest to an output, where no counterfactual is known.
    """
    by_key = {arm.key: arm for arm in arms}
    models = [arm for arm in arms if arm.kind == "model"]
    shown = _spread(len(comparison.sources), _MONTAGE)
    paired = {comparison.source: by_key["copy"].images[shown].numpy()}
    paired |= {arm.name: arm.images[shown].numpy() for arm in models}
    unpaired = {by_key[key].name: by_key[key].images[shown].numpy() for key in ("shift", "denoised") if key in by_key}
    if "counterfactual" in by_key:
        paired["counterfactual"] = by_key["counterfactual"].images[shown].numpy()
    if "real" in by_key:
        real = by_key["real"].images
        unpaired[f"real {comparison.target}"] = real[_spread(len(real), _MONTAGE)].numpy()
    if "real" in by_key and "counterfactual" not in by_key:
        made, seen = models[0].features[extractor][torch.from_numpy(shown)], by_key["real"].features[extractor]
        to = "" if len(models) == 1 else " to the first"
        paired[f"nearest real {comparison.target}{to}"] = real[torch.cdist(made, seen).argmin(dim=1)].numpy()
    titles = [str(cell) for cell in reference.obs.index[comparison.sources[shown[:_SHOWN]]]]
    return cell_panels(paired, unpaired, reference.info.channels, titles=titles, pixel_um=reference.info.pixel_um)


def noise_pictures(noises: Mapping[str, np.ndarray]) -> dict[str, Panel]:
    """Draw the spectrum and the quantiles of x_T of every model; nothing where there are fewer than two cells, or no x_T."""
    kept = {model: x_T for model, x_T in noises.items() if len(x_T) > 1}
    return noise_panels(kept, {model: radial_spectrum(x_T) for model, x_T in kept.items()})


def _spread(n: int, wanted: int) -> np.ndarray:
    """Return positions spread evenly over n, first of all every second of them, so that a short row is spread, too."""
    even = np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(int))
    return np.concatenate([even[::2], even[1::2]])


def save_panels(panels: Mapping[str, Panel], directory: Path, *, target: str) -> list[dict[str, str]]:
    """Write panels as PNG files named by target, and return file, title and caption of each for the report."""
    directory.mkdir(parents=True, exist_ok=True)
    saved = []
    for name, panel in panels.items():
        file = f"{Condition.parse(target).slug}-{name}.png"
        figure = panel.axes.get_figure(root=True)
        assert figure is not None
        figure.savefig(directory / file, dpi=170, bbox_inches="tight", pad_inches=0.06)
        saved.append({"file": f"figures/{file}", "title": panel.title, "caption": panel.caption})
    return saved


def save_generated(file: Path, generated: Store, reference: Store, *, plate: str) -> None:
    """Draw the first generated cells of each condition under real ones of the plate, in the contrast of the real cells."""
    on_plate = reference.select(plates=[plate])
    of_real = reference.condition_names[on_plate]
    made = {condition.name: generated.select(conditions=[condition.name]) for condition in generated.info.conditions}
    real = {name: on_plate[of_real == name] for name in dict.fromkeys((reference.info.control, *made))}
    panels = {
        f"real {name}": reference.images(draw_evenly(rows, reference.plates[rows], n=_MONTAGE, seed=0))
        for name, rows in real.items()
        if len(rows)
    }
    some = reference.images(draw_evenly(on_plate, reference.plates[on_plate], n=_MONTAGE, seed=0))
    limits = contrast_limits(np.concatenate([some, *panels.values()]))
    panels |= {name: generated.images(rows[:_MONTAGE]) for name, rows in made.items()}
    figure = montage(panels, generated.info.channels, limits, pixel_um=generated.info.pixel_um).get_figure(root=True)
    assert figure is not None
    figure.savefig(file, dpi=150, bbox_inches="tight", pad_inches=0.06)
