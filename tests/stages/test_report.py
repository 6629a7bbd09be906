"""Claims about `report`: one self-contained, escaped page that says the verdict first."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from cellbridge.errors import RunError
from cellbridge.plots.montage import montage
from cellbridge.reporting.evaluation import summary
from cellbridge.reporting.training import curves, judged_facts, training_axes
from cellbridge.reporting.values import bar, brief, shown
from cellbridge.stages.report import Config, run


def _estimate(value, half=0.1):
    return {"value": value, "low": value - half, "high": value + half, "n": 40, "resampled": "wells"}


HOSTILE = (
    "<script>alert(1)</script>@1",
    '=HYPERLINK("http://x.test","y")',
    "<img src=x onerror=alert(1)>",
    'a" onload="x',
    "{{ 7*7 }}",
)
"""Names that a page or a spreadsheet must show and never run."""


def _row(key, name, kind, hit):
    return {
        "key": key,
        "name": name,
        "kind": kind,
        "n": 40,
        "n_distance": 20,
        "frechet": _estimate(3.0),
        "kernel": _estimate(0.02, 0.01),
        "gap_closed": {"not_computed": "no gap"},
        "target_hit": _estimate(hit, 0.05),
        "hit_relative": _estimate(1.0),
        "error": _estimate(0.4),
        "score": _estimate(-0.2),
    }


MATRIX = {
    "key": "cross_condition:ddib",
    "title": f"Asked against seen {HOSTILE[3]}",
    "about": "Rows are asked for.",
    "kind": "matrix",
    "row_title": "asked",
    "column_title": "seen as",
    "row_names": ["DMSO", HOSTILE[1]],
    "column_names": ["DMSO", HOSTILE[4]],
    "values": [[_estimate(0.9), {"value": 0.1}], [{"not_computed": "no cells of it"}, _estimate(-0.25)]],
    "factor": 100,
    "digits": 0,
    "unit": "%",
    "notes": [],
}


def _sections():
    """One section of each kind, as `evaluate` writes them."""
    columns = [
        {"key": "hit", "title": "hits", "factor": 100.0, "digits": 0, "unit": "%"},
        {"key": "rank", "title": "rank", "digits": 0},
        {"key": "words", "title": HOSTILE[2]},
    ]
    rows = [
        {
            "name": "plate P1",
            "kind": "model",
            "hit": _estimate(0.7, 0.05),
            "rank": {"value": 2},
            "words": {"text": HOSTILE[0]},
        },
        {"name": HOSTILE[1], "kind": "null", "hit": {"not_computed": "one well"}},
    ]
    table = {"key": "per_plate", "title": "Plate by plate", "about": "Each alone.", "kind": "table", "columns": columns}
    missing = {"key": "profiles", "title": "Profiles", "not_computed": "copairs is not installed"}
    noise = {"key": "x_T", "title": "x_T beside its references", "kind": "table", "columns": columns[:1], "rows": rows}
    return [
        table | {"rows": rows, "notes": ["P2 has no cell."]},
        missing,
        {"key": "odd", "title": "Odd", "kind": "cube"},
        noise,
    ]


@pytest.fixture
def evaluation(tmp_path):
    """A run directory as `evaluate` leaves it, with a compound whose name is HTML."""
    directory = tmp_path / "evaluation"
    (directory / "figures").mkdir(parents=True)
    pictures = {"DMSO": np.random.default_rng(0).uniform(-1, 1, (3, 2, 8, 8))}
    axes = montage(pictures, ["DNA", "ER"], np.array([[-1.0, 1.0], [-1.0, 1.0]]))
    axes.figure.savefig(directory / "figures" / "x-montage.png")
    test = {
        "name": "variance",
        "meaning": "variance of all pixels",
        "p": 0.4,
        "p_holm": 0.8,
        "effect": 1.1,
        "low": 1.05,
    }
    test |= {"high": 1.2, "gate": [0.98, 1.02], "state": "outside"}
    target = {
        "target": "<script>alert(1)</script>@1",
        "source": "DMSO",
        "n": 40,
        "plates": ["0001053597806"],
        "n_wells": 1,
        "n_sites": 4,
        "n_lost": 1,
        "n_unmatched": 2,
        "n_truth": 40,
        "n_responders": 20,
        "resampled": "wells",
        "rows": [_row("model:ddib", "translated (ddib)", "model", 0.7), _row("copy", "copy the control", "null", 0.05)],
        "verdicts": [
            {
                "model": "translated (ddib)",
                "label": "carries the phenotype",
                "text": "It does.",
                "held_up": True,
                "in_part": False,
                "findings": [
                    {
                        "key": "channels",
                        "name": "drops the DNA channel",
                        "state": "against",
                        "text": "Its variance is none.",
                        "evidence": {"variance_ratio": _estimate(0.01, 0.005), "n": 40, "stain": HOSTILE[2]},
                    },
                    {"key": "phenotype", "name": "carries the phenotype", "state": "for", "text": "In 70 %."},
                    {"key": "new", "name": "a kind that is not known yet", "state": "unclear", "text": "?"},
                ],
            }
        ],
        "noise": {"models": {"ddib": [test]}, "fresh": [test]},
        "nuclei": {"model:ddib": {"source": {"shift_px": 0.5, "iou": 0.8, "n": 40}}},
        "notes": ["denoised copy: not computed: no cells."],
        "sections": _sections(),
        "figures": [{"file": "figures/x-montage.png", "title": "Cells", "caption": "Some."}],
    }
    metrics = {
        "format": 3,
        "level": 0.95,
        "input_kind": "stores",
        "cells": "cells.parquet",
        "not_computed": {"timm:resnet18": "timm is not installed"},
        "sections": [MATRIX],
        "kind": "evaluation",
        "seed": 0,
        "split": "test",
        "resamples": 100,
        "channels": ["DNA", "ER"],
        "extractors": [{"name": "extractor", "sha256": "0" * 64}],
        "inception": {"not_computed": "no weights were given"},
        "notes": ["training plates of the base: not known."],
        "models": {
            "plates": "shared",
            "under_judgement": ["P1"],
            "trained_on": {"classifier": ["P1", "P2"], "base": None},
            "shared": {"classifier": ["P1"]},
        },
        "classifier": {
            "conditions": ["DMSO", "taxol@1"],
            "balanced_accuracy": _estimate(0.9),
            "per_condition": {"DMSO": {"n": 9, "recall": _estimate(0.8), "held_out": "wells left out"}},
            "confusion": [[7, 2], [0, 0]],
        },
        "targets": [target],
        "versions": {"torch": "2"},
        "inputs": {"translated": "f" * 64},
    }
    (directory / "cells.parquet").write_bytes(b"PAR1")
    (directory / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return directory


@pytest.fixture
def training(tmp_path):
    directory = tmp_path / "base"
    directory.mkdir()
    lines = [{"event": "started", "step": 0}]
    lines += [{"event": "logged", "step": step, "loss": 1 / step, "images_per_second": 10.0} for step in range(1, 30)]
    (directory / "events.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return directory


def test_curves_are_grouped_and_what_is_not_a_loss_stays_out(training):
    lines = [
        {"event": "logged", "step": step, "loss": 1 / step, "gradient_norm": 2.0, "x_0/outside/t0": None, "mfu": 0.3}
        | {f"loss/t{i}": 1.0 for i in range(10)}
        | {f"log_loss/t{i}": -float(i) for i in range(10)}
        for step in range(1, 30)
    ]
    losses, bands, norm = training_axes(curves(lines)).figure.axes
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["loss"]
    assert [line.get_ydata()[-1] for line in bands.get_lines()] == [-float(i) for i in range(10)]
    assert bands.get_legend().get_texts()[9].get_text() == "0.9–1.0"
    assert norm.get_lines()[-1].get_ydata()[-1] == pytest.approx(2.0)
    assert training_axes(curves([])) is None


class _Page(HTMLParser):
    """What a browser would make of the page: tags, attributes that load or run something, and the text of each element."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.sources, self.links, self.handlers, self.texts = [], [], [], [], []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "data", "srcset")]
        self.links += [value for name, value in attrs if name == "href"]
        self.ids += [value for name, value in attrs if name == "id"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.texts.append(data.strip())


def _page_of(evaluation):
    return (evaluation / "report.html").read_text(encoding="utf-8")


def test_what_a_bridges_network_gained_in_the_end_stands_beside_its_curves():
    judged = [{"step": 2, "gain": 0.1, "gain_error": 0.2}, {"step": 4, "gain": 0.31, "gain_error": 0.02}]
    assert list(judged_facts(judged).values()) == ["0.310 ± 0.020"]
    assert judged_facts([]) == judged_facts([{"step": 2, "held_out_distance": 0.3}]) == {}


def test_the_page_is_self_contained_and_hostile_names_are_shown_and_never_run(evaluation, training):
    run(Config(runs=(evaluation, training)))
    html = _page_of(evaluation)
    page = _Page(html)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert page.handlers == []
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"url\(|@import", html)
    text = " ".join(page.texts)
    for name in HOSTILE:
        assert name in text
    assert "49" not in re.findall(r"seen as (\d+)", text)


def test_links_lead_to_the_numbers_and_the_cells_and_to_places_in_the_page(evaluation, tmp_path):
    run(Config(runs=(evaluation,)))
    page = _Page(_page_of(evaluation))
    files = {link for link in page.links if not link.startswith("#")}
    assert files == {"./metrics.json", "./cells.parquet"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    moved = _Page(
        (tmp_path / "x/report.html").read_text(encoding="utf-8")
        if run(Config(runs=(evaluation,)), out=tmp_path / "x")
        else ""
    )
    assert "../evaluation/cells.parquet" in moved.links


def test_findings_stand_in_the_verdict_with_their_evidence(evaluation):
    run(Config(runs=(evaluation,)))
    html = _page_of(evaluation)
    assert html.index("drops the DNA channel") < html.index("<table>")
    assert "It does." not in html  # the findings say it
    assert "variance ratio 0.01 [0.005, 0.015]; n 40" in html
    assert html.count('<li class="against">') == html.count('<li class="for">') == html.count('<li class="open">') == 1


def test_tables_and_matrices_of_any_section_are_drawn_and_gaps_give_their_reason(evaluation):
    run(Config(runs=(evaluation,)))
    html = _page_of(evaluation)
    for words in ("Plate by plate", "Each alone.", "P2 has no cell.", "65 to 75", "copairs is not installed"):
        assert words in html
    assert "– in hits: one well" in html
    assert "– in DMSO: no cells of it" in html
    assert 'class="heat down" style="--strength: 15.3%"' in html  # -0.25 of 0.9, of the 55 % that the strongest has
    assert "a section of kind &#34;cube&#34;" in html
    assert html.index("Is x_T noise?") < html.index("x_T beside its references")
    assert "timm is not installed" in html


def test_an_evaluation_without_models_or_sources_is_drawn_too(evaluation):
    file = evaluation / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))
    for key in ("models", "classifier", "inception", "split", "cells"):
        metrics.pop(key)
    for key in ("n_wells", "n_sites", "plates", "noise", "nuclei", "n_truth", "n_lost", "n_unmatched"):
        metrics["targets"][0].pop(key)
    file.write_text(json.dumps(metrics | {"input_kind": "folders"}), encoding="utf-8")
    run(Config(runs=(evaluation,)))
    assert "carries the phenotype" in _page_of(evaluation)
    assert "The classifier itself" not in _page_of(evaluation)


def test_numbers_that_evaluate_did_not_write_are_refused_in_one_line(evaluation):
    file = evaluation / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))
    del metrics["targets"][0]["rows"]
    file.write_text(json.dumps(metrics), encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.json: is not what `evaluate` writes \(KeyError: 'rows'\)"):
        run(Config(runs=(evaluation,)))


def test_the_verdict_comes_before_any_table(evaluation):
    run(Config(runs=(evaluation,)))
    html = (evaluation / "report.html").read_text(encoding="utf-8")
    assert "1 of 1 translation held up." in html
    assert html.index("carries the phenotype") < html.index("<table>")


def test_a_part_and_an_open_question_are_counted_apart():
    held, part, unsettled, failed = (
        {"held_up": held_up, "in_part": in_part}
        for held_up, in_part in ((True, False), (None, True), (None, False), (False, False))
    )
    assert summary([held, part, unsettled, failed]) == "1 of 4 translations held up, 1 in part, 1 not settled."
    assert summary([failed]) == "0 of 1 translation held up."


def test_training_plates_stand_in_the_page_and_shared_ones_are_marked(evaluation):
    run(Config(runs=(evaluation,)))
    html = (evaluation / "report.html").read_text(encoding="utf-8")
    assert "The classifier was trained on P1, P2 (<b>shared: P1</b>)." in html
    assert "The base was trained on plates that are not known." in html
    assert "training plates of the base: not known." in html


def test_cells_that_the_compound_removed_are_told_from_those_that_the_truth_does_not_know(evaluation):
    run(Config(runs=(evaluation,)))
    html = (evaluation / "report.html").read_text(encoding="utf-8")
    assert "1 removed by the compound, not scored" in html
    assert "2 not known to the truth, not scored" in html
    assert "1 well, 4 sites" in html.replace("<span>", "")


def test_numbers_stand_with_their_intervals_and_what_is_missing_with_its_reason(evaluation):
    run(Config(runs=(evaluation,)))
    html = (evaluation / "report.html").read_text(encoding="utf-8")
    assert "70 %" in html
    assert "65 to 75" in html
    assert "−0.20" in html
    assert "denoised copy: not computed" in html
    assert "0001053597806" in html
    assert "outside" in html


def test_the_page_goes_where_it_is_wanted(evaluation, tmp_path):
    assert run(Config(runs=(evaluation,)), out=tmp_path / "elsewhere")["report"] == str(
        tmp_path / "elsewhere/report.html"
    )
    assert not (evaluation / "report.html").exists()


def test_a_run_without_numbers_is_refused(tmp_path, training):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty: holds no evaluation"):
        run(Config(runs=(tmp_path / "empty",)))
    with pytest.raises(RunError, match="none is an evaluation"):
        run(Config(runs=(training,)))


def test_numbers_of_another_format_are_refused(evaluation):
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    (evaluation / "metrics.json").write_text(json.dumps(metrics | {"format": 1}), encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.json: format 1, expected 2 or 3"):
        run(Config(runs=(evaluation,)))


def test_a_missing_figure_is_named(evaluation):
    (evaluation / "figures" / "x-montage.png").unlink()
    with pytest.raises(RunError, match=r"x-montage\.png: is missing"):
        run(Config(runs=(evaluation,)))
    assert not (evaluation / "report.html").exists()


@pytest.mark.parametrize("name", ["../private.png", "{parent}/private.png"])
def test_no_file_outside_of_the_run_goes_into_the_page(evaluation, name):
    (evaluation.parent / "private.png").write_bytes(b"nobody's business")
    file = evaluation / "metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))
    metrics["targets"][0]["figures"][0]["file"] = name.format(parent=evaluation.parent)
    file.write_text(json.dumps(metrics), encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.json: names a figure outside of its run"):
        run(Config(runs=(evaluation,)))


def test_a_value_is_given_in_digits_that_can_be_read():
    assert shown({"value": -0.25, "low": -0.5, "high": 0.0, "n": 9, "resampled": "wells"}, digits=2) == {
        "value": "−0.25",
        "interval": "−0.50 to 0.00",
        "behind": "n = 9; wells",
        "why": "",
    }
    assert shown({"value": 404358505.703}, digits=0, factor=1e3)["value"] == "4.04e+11"
    assert shown({"not_computed": "no cells"}, digits=2)["why"] == "no cells"
    assert brief({"value": 0.98765, "low": -1.0, "high": 2.0}) == "0.988 [−1, 2]"
    assert bar({"value": 0.5}, (0.0, 1.0), factor=100, unit="%")["point"] == 50.0
