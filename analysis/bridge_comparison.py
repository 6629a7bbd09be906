"""Is the bridge worth its name? S0, S1, S2 and the peers' recipes at equal compute, on cells whose truth is known and on real ones.

    python analysis/bridge_comparison.py --study synthetic --out DIR           everything; the same command again continues
    python analysis/bridge_comparison.py --study bbbc021 --out DIR --study-run runs/bbbc021_cyclohexamide --seeds 0
    python analysis/bridge_comparison.py --study synthetic --out DIR --table   the Markdown tables and verdicts of what is there

S0 is bridge matching from plate-matched independent pairs, S1 the OT-coupled bridge, S2 S1 with a round of iterative Markovian fitting. Each
arm × seed is trained by cellbridge's own commands in one process of one thread, all arms from the same base and with the same batch, for as
many steps as `--seconds` of processor time allow at a speed that is measured first; what it really took, start-up and loading included, is in
the result. Then the same held-out control cells are translated to every condition and to the control, and `cellbridge evaluate` judges
them. The seed is that of the training alone. Seeds are the outer loop, so that the first pass is a whole table. An arm that fails is told,
passed over, and tried again by the next call.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bridge_arms import ARMS, Arm, evaluate_command, fit_commands, translate_command
from bridge_studies import STUDIES, Made, Study
from bridge_table import markdown, reduced, results, verdicts
from counted_commands import Failed, call

import cellbridge  # noqa: F401  (before diffusers)
from cellbridge.runs import write_json

SHARE = 0.9
"""Of the budget that steps are planned for: speed varies, and the budget is not to be passed."""
FEW, MANY, TURNS = 4, 84, 1
"""Optimiser steps, in all, of the two runs that speed is measured by, and how often it is."""


def train(study: Study, made: Made, arm: Arm, folder: Path, *, steps: int, seed: int) -> float:
    """Train an arm anew, and return the processor seconds of its process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commands = fit_commands(study, made, arm, folder, steps=steps, seed=seed)
    return call(list(commands.values()), folder / "log.txt")


def plan(study: Study, made: Made, out: Path, *, names: Sequence[str], seconds: float) -> dict[str, dict[str, Any]]:
    """Return how many steps each arm can take in `seconds`, by a straight line through the costs of a short and a longer run.

    The arms take turns, so that what else the machine does falls on all of them alike; a plan that is there is kept.
    """
    file = out / "plan.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if any(each["seconds"] != seconds for each in found.values()):
        raise SystemExit(f"{file}: is of another budget than --seconds {seconds:g}. Choose another --out.")
    trained = dict.fromkeys(ARMS[name].trained_as or name for name in names)
    found |= {name: {"seconds": seconds, "steps": steps} for name in trained if (steps := ARMS[name].steps) is not None}
    missing = [name for name in trained if name not in found]
    costs: dict[str, list[dict[int, float]]] = {name: [] for name in missing}
    for _ in range(TURNS):
        for name in missing:
            folder = out / "calibration"
            try:
                costs[name].append(
                    {steps: train(study, made, ARMS[name], folder, steps=steps, seed=0) for steps in (FEW, MANY)}
                )
            except Failed as error:
                print(f"failed: speed of {name}: {error}", flush=True)
            shutil.rmtree(folder)
    for name in missing:
        if len(costs[name]) == TURNS:
            found[name] = _steps(costs[name], seconds)
    write_json(file, found)
    return found


def _steps(costs: Sequence[Mapping[int, float]], seconds: float) -> dict[str, float]:
    few, many = (float(np.mean([cost[steps] for cost in costs])) for steps in (FEW, MANY))
    per_step = (many - few) / (MANY - FEW)
    fixed = few - FEW * per_step
    steps = max(MANY, int((SHARE * seconds - fixed) / per_step))
    return {"seconds": seconds, "steps": steps, "seconds_per_step": per_step, "fixed_seconds": fixed}


def judged(study: Study, made: Made, name: str, folder: Path) -> dict[str, Any]:
    """Translate with a trained arm and judge the translation; returns what `evaluate` found and the seconds of translating."""
    arm, translated, evaluation = ARMS[name], folder / "translated.zarr", folder / "evaluation"
    log = folder / "log.txt"
    models = folder if arm.trained_as is None else folder.parent / slug(arm.trained_as)
    seconds = call([translate_command(study, made, arm, models, translated)], log)
    call([evaluate_command(made, translated, evaluation)], log)
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    return {"translate_cpu_seconds": seconds, **reduced(metrics)}


def compare(study: Study, made: Made, out: Path, *, names: Sequence[str], seeds: Sequence[int], seconds: float) -> None:
    """Train and judge what is not done, all arms of a seed before the next seed."""
    planned = plan(study, made, out, names=names, seconds=seconds)
    for seed in seeds:
        for name in names:
            result = out / "results" / f"{slug(name)}-{seed}.json"
            if result.exists():
                continue
            try:
                write_json(result, _arm(study, made, name, out, seed=seed, planned=planned))
            except Failed as error:
                print(f"failed: {name}, seed {seed}: {error}", flush=True)
                continue
            print(f"done: {result}", flush=True)


def _arm(
    study: Study, made: Made, name: str, out: Path, *, seed: int, planned: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Train an arm, where its models are its own and not there yet, and judge it."""
    (out / "results").mkdir(parents=True, exist_ok=True)
    runs = out / "runs" / f"seed-{seed}"
    trained = ARMS[name].trained_as or name
    cost = runs / slug(trained) / "cost.json"
    if not cost.exists():
        if trained not in planned:
            raise Failed("its speed could not be measured")
        steps = planned[trained]["steps"]
        spent = train(study, made, ARMS[trained], runs / slug(trained), steps=steps, seed=seed)
        write_json(cost, {"cpu_seconds": spent, "steps": steps})
    folder = runs / slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"study": study.name, "arm": name, "seed": seed, **json.loads(cost.read_text(encoding="utf-8"))}
    return found | judged(study, made, name, folder)


def slug(name: str) -> str:
    """Return an arm's name as `--arms` and file names have it."""
    return "_".join(name.lower().replace("-", " ").split())


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=list(STUDIES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--study-run", type=Path, help="of bbbc021: what `make study` wrote, whose store and base are taken"
    )
    parser.add_argument("--arms", help="some of them, such as s0,s1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="of processor time for training an arm, on one thread"
    )
    parser.add_argument("--prepare", action="store_true", help="make cells, classifier and base, and stop")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and do nothing else")
    asked = parser.parse_args()
    study = STUDIES[asked.study]
    by_slug = {slug(name): name for name in study.arms}
    wanted = list(by_slug) if asked.arms is None else asked.arms.split(",")
    if unknown := [name for name in wanted if name not in by_slug]:
        parser.error(f'--arms: "{unknown[0]}" is none of {", ".join(by_slug)}')
    if not asked.table:
        import torch

        torch.set_num_threads(1)
        asked.out.mkdir(parents=True, exist_ok=True)
        made = study.make(asked.out, asked.study_run)
        if asked.prepare:
            return
        seeds = [int(seed) for seed in asked.seeds.split(",")]
        compare(study, made, asked.out, names=[by_slug[name] for name in wanted], seeds=seeds, seconds=asked.seconds)
    found = results(asked.out, study.arms)
    print("\n\n".join([*markdown(found), *verdicts(found)]))


if __name__ == "__main__":
    main()
