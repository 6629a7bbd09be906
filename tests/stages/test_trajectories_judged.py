"""Claims about trajectories in `evaluate` and `report`: measured, shown with their times, and only where they are of the translation."""

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from known_world import HEAD, truth_images, write_classifier, write_study, write_translated
from PIL import Image

from cellbridge.data.store import open_store, write_store
from cellbridge.runs import RunDir, fingerprint
from cellbridge.stages.evaluate import Config, run
from cellbridge.stages.report import Config as ReportConfig
from cellbridge.stages.report import run as report

TARGET = "dimmer@5"
TIMES = (0.0, 0.4, 0.7, 1.0)
CELLS = 6


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ways")
    paths = write_study(folder, per_well=12)
    truth = {"bridge": {TARGET: truth_images(paths, TARGET, origin="responding")}}
    paths["translated"] = write_translated(folder / "translated.zarr", paths, truth)
    paths["classifier"] = write_classifier(folder / "classifier", paths)
    return paths


def _write_frames(study, *, attributes):
    """Write frames on the straight line from each cell to its translation, run through evenly, and pictures beside them."""
    reference, translated = open_store(study["reference"]), open_store(study["translated"])
    rows = reference.obs.index.get_indexer(translated.obs["Metadata_SourceCell"])[:CELLS]
    start, end = reference.images(rows), translated.images(np.arange(CELLS))
    tables, images = [], []
    for number, time in enumerate(TIMES):
        table = translated.obs.iloc[:CELLS].reset_index(drop=True)
        table["Metadata_Frame"], table["Metadata_BridgeTime"] = str(number), f"{time:g}"
        table["Metadata_Cell"] += f"/{number}"
        tables.append(table)
        images.append((1 - time) * start + time * end)
    obs = pd.concat(tables, ignore_index=True)
    plates = list(obs["Metadata_Plate"])
    counts = reference.intensity.to_counts(torch.from_numpy(np.concatenate(images)), plates)[0].numpy()
    told = {"inputs": {"store": fingerprint(study["reference"])}, **attributes}
    place = study["translated"].with_name("translated_trajectories.zarr")
    settings = {"intensity": reference.intensity, "attributes": told, "overwrite": True, **HEAD}
    write_store(place, obs=obs, counts=counts.astype(np.uint16), **settings)
    pictures = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in (0, 120, 250)]
    pictures[0].save(place.with_suffix(".gif"), save_all=True, append_images=pictures[1:])
    pictures[0].save(place.with_suffix(".png"))


def _evaluated(study, out):
    run(Config(**study, resamples=100, n=24), out=out)
    return json.loads(RunDir(out).metrics.read_text(encoding="utf-8"))


class _Images(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.sources.append(dict(attrs)["src"])


def test_a_straight_way_has_no_detour_and_is_shown_with_its_times(study, tmp_path):
    _write_frames(study, attributes={})
    metrics = _evaluated(study, tmp_path / "run")
    (row,) = next(part for part in metrics["sections"] if part["key"] == "trajectories")["rows"]
    assert (row["cells"]["value"], row["frames"]["value"]) == (CELLS, len(TIMES))
    assert row["pixel_detour"]["value"] == pytest.approx(1.0, abs=0.01)
    assert row["pixel_energy"]["value"] >= row["pixel_displacement"]["value"] ** 2
    assert row["detour"]["value"] >= 1
    (shown,) = metrics["trajectories"]
    assert "0, 0.4, 0.7, 1" in shown["caption"]
    report(ReportConfig(runs=(tmp_path / "run",)))
    page = _Images()
    html = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    page.feed(html)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert sum(source.startswith("data:image/gif;") for source in page.sources) == 1
    assert "0, 0.4, 0.7, 1" in html


def test_frames_of_another_translation_are_left_out(study, tmp_path):
    _write_frames(study, attributes={"config": {"seed": 7}})
    metrics = _evaluated(study, tmp_path / "run")
    assert "trajectories" not in metrics
    assert "trajectories" not in {section["key"] for section in metrics["sections"]}
