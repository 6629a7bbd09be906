"""The figure of the strength sweep: settings as lines that say their strengths, null rows as marks that the legend names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))

from strength_sweep import Point, drawn

BRIDGE = [
    Point(f"bridge {strength}", "bridge", strength, 0.9 - strength, 0.5 + strength, None) for strength in (0.1, 0.2)
]
COPY, SHIFT = (
    Point(name, "null", None, 1.0, hit, None) for name, hit in (("copy the control", 0.0), ("mean shift", 0.01))
)


def test_null_rows_are_named_by_the_legend_alone_and_have_one_mark_in_every_panel():
    figure = drawn({"taxol@1": [*BRIDGE, COPY, SHIFT], "tunicamycin@5": [SHIFT, *BRIDGE]})
    for axes in figure.axes:
        assert [text.get_text() for text in axes.texts] == ["0.1", "0.2"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["bridge", "copy the control", "mean shift"]
    marks = [[line.get_marker() for line in axes.lines] for axes in figure.axes]
    assert marks == [["o", "x", "+"], ["o", "+"]]
    assert list(figure.axes[0].lines[0].get_ydata()) == [60.0, 70.0]
