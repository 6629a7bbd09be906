"""Both rendered studies with every planted model, and the verdicts on them, made when first asked for."""

import json

from planted_store import planted_models, write_planted
from rendered_study import FIRST, SECOND, TEST_PLATES, render_study

from cellbridge.runs import RunDir
from cellbridge.stages.evaluate import Config, run

STUDIES = {"first": FIRST, "second": SECOND}


class Judged:
    """Evaluations of the planted models, by study and by whether the truth was given."""

    def __init__(self, root):
        self.root = root
        self.made = {}

    def study(self, name):
        """Return the paths of a study, its planted models among them."""
        if name not in self.made:
            folder, study = self.root / name, STUDIES[name]
            paths = render_study(study, folder)
            models = planted_models(paths, study.conditions, works_on=TEST_PLATES[0])
            write_planted(folder / "planted.zarr", paths, models, study.conditions)
            self.made[name] = paths | {"translated": folder / "planted.zarr"}
        return self.made[name]

    def labels(self, name, *, truth):
        """Return (target, model) → verdict of an evaluation."""
        key = (name, truth)
        if key not in self.made:
            paths = {role: path for role, path in self.study(name).items() if truth or role != "truth"}
            out = self.root / name / f"evaluation {truth}"
            run(Config(**paths, resamples=300, figures=False, device="cpu"), out=out)
            metrics = json.loads(RunDir(out).metrics.read_text(encoding="utf-8"))
            self.made[key] = {
                (target["target"], verdict["key"].removeprefix("model:")): verdict
                for target in metrics["targets"]
                for verdict in target["verdicts"]
            }
        return self.made[key]
