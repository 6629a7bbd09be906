"""One evaluation's metrics.json as the page shows it: verdicts and findings, the table of each target, its sections and pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cellbridge.reporting.sections import finding_view, section_view
from cellbridge.reporting.values import bar, brief, p_value, reasons, scale, shown

Inline = Callable[[str], str]
"""A figure's file name → its picture as a data URI."""

_BARS = (
    ("error", "error per cell", "", 1.0),
    ("error_responders", "… of responders", "", 1.0),
    ("score", "score", "", 1.0),
    ("target_hit", "seen as target", "%", 100.0),
)
_GAP = ("gap_closed", "gap closed", "", 1.0)
"""Columns that are drawn with their interval: key, heading, unit, factor; the gap is the last column of the table."""
_TO_ONE = ("target_hit", "score", "gap_closed")
_OF_NOISE = ("spectrum.png", "quantiles.png")


def evaluation_view(name: str, metrics: Mapping[str, Any], *, inline: Inline) -> dict[str, Any]:
    """Return one evaluation.

    Parameters
    ----------
    name : of its directory.
    inline : gives the pictures.
    """
    targets = [_target_view(target, inline=inline) for target in metrics["targets"]]
    models = metrics.get("models", {})
    return {
        "name": name,
        "targets": targets,
        "summary": summary([verdict for target in targets for verdict in target["verdicts"]]),
        "classifier": _classifier_view(metrics.get("classifier", {})),
        "trajectories": [_way_view(way, inline=inline) for way in metrics.get("trajectories", [])],
        "sections": [section_view(section) for section in metrics.get("sections", [])],
        "facts": _facts(metrics),
        "notes": list(metrics.get("notes", [])),
        "missing": dict(metrics.get("not_computed", {})) | _inception(metrics),
        "extractors": list(metrics.get("extractors", [])),
        "judged_on": list(models.get("under_judgement", [])),
        "trained_on": dict(models.get("trained_on", {})),
        "shared": dict(models.get("shared", {})),
        "inputs": dict(metrics.get("inputs", {})),
        "versions": dict(metrics.get("versions", {})),
        "split": metrics.get("split") or "",
        "level": f"{100 * metrics.get('level', 0.95):g}",
    }


def _way_view(way: Mapping[str, Any], *, inline: Inline) -> dict[str, Any]:
    """Return the pictures of the ways of one model's cells: the moving one, the strip, or both."""
    pictures = [inline(way[kind]) for kind in ("moving", "strip") if kind in way]
    return {"title": way["title"], "caption": way["caption"], "pictures": pictures}


def summary(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence how many translations held up, in part, or are not settled."""
    held_up = sum(verdict["held_up"] is True for verdict in verdicts)
    in_part = sum(verdict["in_part"] for verdict in verdicts)
    unsettled = sum(verdict["held_up"] is None and not verdict["in_part"] for verdict in verdicts)
    words = [f"{held_up} of {len(verdicts)} translation{'s' if len(verdicts) != 1 else ''} held up"]
    words += [f"{in_part} in part"] if in_part else []
    words += [f"{unsettled} not settled"] if unsettled else []
    return ", ".join(words) + "."


def _facts(metrics: Mapping[str, Any]) -> list[str]:
    facts = [f"split {metrics['split']}"] if metrics.get("split") else []
    facts += [
        f"seed {metrics['seed']}",
        f"{100 * metrics.get('level', 0.95):g} % intervals, {metrics['resamples']} draws",
    ]
    return [*facts, f"stains {', '.join(metrics['channels'])}"]


def _inception(metrics: Mapping[str, Any]) -> dict[str, str]:
    why = (metrics.get("inception") or {}).get("not_computed")
    return {"Inception": why} if why else {}


def _target_view(target: Mapping[str, Any], *, inline: Inline) -> dict[str, Any]:
    pictures = [figure | {"data": inline(figure["file"])} for figure in target.get("figures", [])]
    sections = [section_view(section) for section in target.get("sections", [])]
    return {
        "source": target["source"],
        "target": target["target"],
        "facts": _target_facts(target),
        **_main_table(target["rows"]),
        "verdicts": [_verdict_view(verdict) for verdict in target["verdicts"]],
        "others": _other_extractors(target["rows"]),
        "sections": [section for section in sections if section["key"] != "x_T"],
        "noise_sections": [section for section in sections if section["key"] == "x_T"],
        "noise": _noise_view(target.get("noise", {})),
        "noise_why": target.get("noise", {}).get("not_computed", ""),
        "nuclei": _nuclei_view(target),
        "notes": list(target.get("notes", [])),
        "pictures": [picture for picture in pictures if not picture["file"].endswith(_OF_NOISE)],
        "noise_pictures": [picture for picture in pictures if picture["file"].endswith(_OF_NOISE)],
    }


def _verdict_view(verdict: Mapping[str, Any]) -> dict[str, Any]:
    return {**verdict, "findings": [finding_view(finding) for finding in verdict.get("findings", [])]}


def _target_facts(target: Mapping[str, Any]) -> list[str]:
    def counted(key: str, unit: str) -> str:
        return f"{target[key]} {unit}{'' if target[key] == 1 else 's'}"

    n_distance = next((row["n_distance"] for row in target["rows"] if row.get("n_distance")), 0)
    facts = [f"{target['n']} cells in every row" + (f" ({n_distance} for distances)" if n_distance else "")]
    if target.get("n_wells"):
        facts.append(f"{counted('n_wells', 'well')}, {counted('n_sites', 'site')}")
    if target.get("plates"):
        facts.append(f"plates {', '.join(target['plates'])}")
    facts.append(f"intervals over {target['resampled']}")
    if target.get("n_truth"):
        facts.append(f"{target['n_responders']} of {target['n_truth']} respond")
    left_out = (("n_lost", "removed by the compound"), ("n_unmatched", "not known to the truth"))
    return facts + [f"{target[key]} {words}, not scored" for key, words in left_out if target.get(key)]


def _main_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    axes = {key: scale(rows, key, to_one=key in _TO_ONE) for key, *_ in (*_BARS, _GAP)}
    bars = [one for one in _BARS if axes[one[0]] is not None]
    key, heading, unit, factor = _GAP
    view = [
        {
            "name": row["name"],
            "kind": row["kind"],
            "n": row["n"],
            "relative": shown(row.get("hit_relative"), digits=2),
            "frechet": shown(row.get("frechet"), digits=2),
            "kernel": shown(row.get("kernel"), factor=1e3, digits=0),
            "bars": [bar(row.get(name), axes[name], factor=by, unit=of) for name, _, of, by in bars],
            "gap": bar(row.get(key), axes[key], factor=factor, unit=unit),
        }
        for row in rows
    ]
    headings = [title for _, title, *_ in bars]
    named = [pair for row in view for pair in zip(headings, row["bars"], strict=True)]
    for row in view:
        named += [
            ("hits / real", row["relative"]),
            ("Fréchet", row["frechet"]),
            ("kernel", row["kernel"]),
            (heading, row["gap"]),
        ]
    return {"rows": view, "headings": headings, "reasons": reasons(named)}


def _other_extractors(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row.get("others", {})))

    def cells(found: Mapping[str, Any]) -> list[dict[str, str]]:
        return [
            shown(found.get("frechet"), digits=2),
            shown(found.get("kernel"), factor=1e3, digits=2),
            shown(found.get("gap_closed"), digits=2),
        ]

    return [
        {
            "name": name,
            "rows": [
                {"name": row["name"], "kind": row["kind"], "cells": cells(row["others"][name])}
                for row in rows
                if name in row.get("others", {})
            ],
        }
        for name in names
    ]


def _noise_view(noise: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, per model, each test of x_T beside the same test of fresh noise."""
    fresh = {test["name"]: test for test in noise.get("fresh", [])}
    return [
        {
            "model": model,
            "failed": [test["name"] for test in tests if test["state"] == "outside"],
            "tests": [_test_view(test, fresh.get(test["name"])) for test in tests],
        }
        for model, tests in noise.get("models", {}).items()
    ]


def _test_view(test: Mapping[str, Any], fresh: Mapping[str, Any] | None) -> dict[str, Any]:
    gate = test["gate"]
    return {
        "name": test["name"],
        "meaning": test["meaning"],
        "state": test["state"],
        "effect": shown({**test, "value": test["effect"]}, digits=3),
        "gate": "described only" if gate is None else f"{brief(gate[0])} to {brief(gate[1])}",
        "p": p_value(test["p_holm"]),
        "fresh_effect": "–" if fresh is None else shown({"value": fresh["effect"]}, digits=3)["value"],
        "fresh_p": "–" if fresh is None else p_value(fresh["p_holm"]),
    }


def _nuclei_view(target: Mapping[str, Any]) -> list[str]:
    names = {row["key"]: row["name"] for row in target["rows"]}
    return [
        f"{names.get(key, key)} against {'its source' if other == 'source' else 'the counterfactual'}: median shift "
        f"{found['shift_px']:.1f} px, median overlap {found['iou']:.2f} (n = {found['n']})"
        for key, compared in target.get("nuclei", {}).items()
        if isinstance(compared, dict)
        for other, found in compared.items()
        if isinstance(found, dict) and isinstance(found.get("shift_px"), float | int)
    ]


def _classifier_view(classifier: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    confusion = classifier.get("confusion", [])
    for index, name in enumerate(classifier.get("conditions", [])):
        entry = classifier.get("per_condition", {}).get(name)
        if entry is None:
            continue
        total = max(1, sum(confusion[index]))
        rows.append(
            {
                "name": name,
                "n": entry["n"],
                "recall": shown(entry["recall"], factor=100, digits=0),
                "auc": shown(entry.get("auc"), digits=3),
                "held_out": entry.get("held_out", ""),
                "confusion": [{"count": count, "strength": round(55 * count / total, 1)} for count in confusion[index]],
            }
        )
    balanced = shown(classifier.get("balanced_accuracy"), factor=100, digits=1)
    return {"rows": rows, "balanced": balanced, "conditions": list(classifier.get("conditions", []))}
