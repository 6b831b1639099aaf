from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np

from trainer.reporting.line_charts import Panel, limits, picture, stack

PLACE = (390.0, 200.0, 390.0, 200.0)


def points(shape: str) -> list[tuple[float, float]]:
    found = re.search(r'points="([^"]*)"', shape)
    assert found
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_a_curve_is_within_its_plot_and_higher_values_higher() -> None:
    steps, values = np.arange(1.0, 101), np.arange(100.0) ** 2
    panel = Panel("loss", PLACE, 100, *limits(values))
    panel.line(steps, values, "red")
    found = points(panel.shapes[0])
    assert len(found) == 100
    assert all(390 < x <= 780 and 200 < y < 400 for x, y in found)
    assert [y for _, y in found] == sorted((y for _, y in found), reverse=True)


def test_curves_have_gaps_where_values_are_none() -> None:
    panel = Panel("loss", PLACE, 4, 1, 10, log=True)
    panel.line(np.arange(1.0, 6), np.array([1, 2, np.nan, 0, 5.0]), "red")
    assert [len(points(shape)) for shape in panel.shapes] == [2, 2]  # a dot is a line, too


def test_words_stay_inside_the_picture() -> None:
    panel = Panel("tokens per second", (0, 0, 390, 200), 12_345, *limits(np.array([3e5, 4e5]), from_zero=True))
    root = ElementTree.fromstring(picture(390, 200, "<&", [panel.svg()]))
    texts = list(root.iter("{http://www.w3.org/2000/svg}text"))
    assert {"0", "200,000", "10,000"} <= {text.text for text in texts}
    for text in texts:
        width = 7 * len(text.text or "")  # pixels, at 12 a line
        shift = {"end": width, "middle": width / 2}.get(text.get("text-anchor", ""), 0)
        assert float(text.get("x", "")) - shift >= 0
        assert float(text.get("x", "")) - shift + width <= 390
        assert 12 <= float(text.get("y", "")) <= 200
    assert root.get("aria-label") == "<&"


def test_bands_fill_the_plot_without_a_gap() -> None:
    tops = np.array([[20.0, 20], [10, 5], [0, 0]])
    assert stack(np.array([0.0, 50, 100]), tops, ["red", "blue"]) == [
        '<path d="M0.0 20.0V10.0H50.0V5.0H100.0V20.0H50.0V20.0H0.0Z" fill="red" fill-opacity=".8"/>',
        '<path d="M0.0 10.0V0.0H50.0V0.0H100.0V5.0H50.0V10.0H0.0Z" fill="blue" fill-opacity=".8"/>',
    ]


def test_limits_hold_all_finite_values() -> None:
    assert limits(np.array([])) == (0, 1)
    assert limits(np.array([np.nan, 0.0]), log=True) == (1, 10)
    low, high = limits(np.array([3.0, np.nan, 5.0, np.inf]))
    assert low < 3 < 5 < high
    assert limits(np.array([2.0]), from_zero=True)[0] == 0
    low, high = limits(np.array([0.0, 0.0]))
    assert low < 0 < high
