"""Loss charts as SVG and in a terminal."""

from __future__ import annotations

import math
import re
from base64 import b64decode
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from arkor.charts.series import Curve
from arkor.charts.svg import loss_chart, loss_image
from arkor.charts.terminal import loss_plot


def curve_of(*pairs: tuple[int, float]) -> Curve:
    curve = Curve()
    for step, value in pairs:
        curve.add(step, value)
    return curve


FALLING = curve_of(*((step, 2 / step) for step in range(1, 41)))
MEASURED = curve_of((20, 0.4), (40, 0.2))
NONE = Curve()


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in parsed(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_chart_has_a_legend_and_a_label() -> None:
    svg = loss_chart(FALLING, MEASURED)
    assert {"loss", "loss 0.05", "eval loss 0.2", "10", "40", "1"} <= set(texts(svg))
    assert parsed(svg).attrib["aria-label"] == "loss 0.05, eval loss 0.2"
    assert "<script" not in svg
    assert "not finite" not in svg


def test_an_image_is_the_chart() -> None:
    image = ElementTree.fromstring(loss_image(FALLING, MEASURED) + "</img>")
    data = image.attrib["src"].removeprefix("data:image/svg+xml;base64,")
    assert b64decode(data).decode() == loss_chart(FALLING, MEASURED)
    assert image.attrib["alt"] == "loss 0.05, eval loss 0.2"
    assert loss_image(NONE, NONE) == ""


BACKGROUNDS = {
    "white": "#ffffff",
    "black": "#000000",
    "JupyterLab": "#111111",
    "VS Code": "#1f1f1f",
    "Colab": "#383838",
}


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2, from 0 to 1."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_each_colour_contrasts_with_the_background_of_any_notebook() -> None:
    svg = loss_chart(curve_of((1, 1.0), (2, 0.5), (3, math.nan)), MEASURED)
    colours = set(re.findall("#[0-9a-f]{6}", svg))
    assert len(colours) == 4
    for colour in colours:
        for name, background in BACKGROUNDS.items():
            dark, light = sorted((luminance(colour), luminance(background)))
            assert (light + 0.05) / (dark + 0.05) >= 3, (colour, name)


def test_the_axis_reaches_the_last_step_of_the_run() -> None:
    assert "200" in texts(loss_chart(FALLING, NONE, last_step=200))


def test_a_diverged_loss_is_marked() -> None:
    svg = loss_chart(curve_of((1, 1.0), (2, math.nan), (3, math.inf)), NONE)
    assert {"not finite: 2, from step 2", "loss inf"} <= set(texts(svg))
    assert "nothing" not in loss_plot(curve_of((1, math.nan)), NONE)
    assert "× not finite: 1, from step 1" in loss_plot(curve_of((1, math.nan)), NONE)


def test_empty_curves_have_no_chart() -> None:
    assert loss_chart(NONE, NONE) == ""
    assert loss_plot(NONE, NONE) == "nothing has been logged"


@given(st.lists(st.tuples(st.integers(0, 10**400), st.floats()), min_size=1, max_size=20).map(sorted))
def test_any_numbers_can_be_drawn(pairs: list[tuple[int, float]]) -> None:
    curve = curve_of(*pairs)
    for svg in (loss_chart(curve, NONE), loss_chart(NONE, curve, last_step=10**400)):
        drawn = " ".join(node.attrib.get("d", "") for node in parsed(svg).iter())
        assert not re.search("nan|inf", drawn)
    lines = loss_plot(curve, curve, columns=50, rows=12).splitlines()[1:]
    assert max(map(len, lines)) <= 50
    assert len(lines) <= 11


def test_a_plot_in_braille() -> None:
    plot = loss_plot(curve_of((0, 0.0), (10, 10.0)), NONE, columns=24, rows=11)
    assert plot.splitlines() == [
        "⠒⠒ loss 10",
        "10 │                ⢀⡠⠊",
        "   │              ⢀⠔⠁",
        "   │            ⡠⠊⠁",
        "   │         ⢀⠔⠊",
        "   │       ⡠⠔⠁",
        "   │    ⢀⡠⠊",
        "   │  ⢀⠔⠁",
        " 0 │⡠⠊⠁",
        "   └───────────────────",
        "    0                10",
    ]


def test_a_plot_without_unicode_is_ascii() -> None:
    plot = loss_plot(FALLING, MEASURED, unicode=False)
    assert plot.isascii()
    assert plot.splitlines()[0] == "** loss 0.05  o eval loss 0.2"
    assert sum(line.count("o") for line in plot.splitlines()[1:]) == 2


def test_one_value_is_a_dot() -> None:
    plot = loss_plot(curve_of((7, 3.0)), NONE, columns=30, rows=12)
    assert sum("⠀" < letter <= "⣿" for line in plot.splitlines()[1:] for letter in line) == 1
    assert "3" in plot
    assert "circle" in loss_chart(curve_of((7, 3.0)), NONE)


def test_the_caller_chooses_the_colours() -> None:
    colours: set[str] = set()

    def paint(text: str, colour: str) -> str:
        colours.add(colour)
        return text

    plain = loss_plot(FALLING, curve_of((1, 2.0), (2, math.nan)))
    assert loss_plot(FALLING, curve_of((1, 2.0), (2, math.nan)), paint=paint) == plain
    assert colours == {"blue", "yellow", "red"}
