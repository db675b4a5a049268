"""A loss chart as SVG without scripts, for light and dark pages.

It is embedded as an image, because Jupyter shows only the images of a notebook that is not trusted.
An image cannot inherit the colours of the page, so it uses one ink that is readable on white, on
black and on the grey of Colab.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence

from arkor.charts.series import Curve, Point, Scale, last_text, legend, scales, tick_text

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 26, 30
_INK = "#878787"  # like the colours below, with a contrast of at least 3:1 on each background
_COLOURS = {"loss": "#3b82f6", "eval_loss": "#d97706", "non_finite": "#ef4444"}


def loss_image(loss: Curve, eval_loss: Curve, last_step: int | None = None) -> str:
    if not (chart := loss_chart(loss, eval_loss, last_step)):
        return ""
    data = b64encode(chart.encode()).decode()
    size = f'width="{_WIDTH}" height="{_HEIGHT}" style="max-width:100%;height:auto"'
    return f'<img {size} alt="{_label(loss, eval_loss)}" src="data:image/svg+xml;base64,{data}">'


def loss_chart(loss: Curve, eval_loss: Curve, last_step: int | None = None) -> str:
    """Return the losses over the steps, at least up to `last_step`; `""` for empty curves."""
    if not (axes := scales(loss, eval_loss, last_step)):
        return ""
    across, up = axes
    parts = [*_frame(across, up), *_line(loss.points, across, up)]
    parts += [_dot(point, across, up, "eval_loss") for point in eval_loss.points]
    parts += [*_non_finite_marks([*loss.non_finite, *eval_loss.non_finite], across), *_legend(loss, eval_loss)]
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    font = f'font-family="system-ui, sans-serif" font-size="11" fill="{_INK}"'
    label = f'role="img" aria-label="{_label(loss, eval_loss)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box} {font} {label}>{"".join(parts)}</svg>'


def _x(across: Scale, step: float) -> float:
    return round(_LEFT + across.position(step) * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(up: Scale, value: float) -> float:
    return round(_HEIGHT - _BOTTOM - up.position(value) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _frame(across: Scale, up: Scale) -> Iterator[str]:
    """Draw the axis of the steps, and the grid lines with their numbers."""
    for value in up.ticks(5):
        y = _y(up, value)
        yield f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="{_INK}" stroke-opacity=".15"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick_text(value)}</text>'
    for step in across.ticks(8):
        if step == int(step):
            text = f'text-anchor="middle">{int(step)}</text>'
            yield f'<text x="{_x(across, step)}" y="{_HEIGHT - _BOTTOM + 16}" {text}'
    yield f'<path d="M{_LEFT} {_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" stroke="{_INK}" stroke-opacity=".5"/>'
    yield f'<text x="{_LEFT}" y="{_TOP - 12}">{"loss, logarithmic" if up.logarithmic else "loss"}</text>'


def _line(points: Sequence[Point], across: Scale, up: Scale) -> Iterator[str]:
    """Draw the means as a line, over a band between the bounds of merged points."""
    colour = _COLOURS["loss"]
    if any(point.count > 1 for point in points):
        above = [f"{_x(across, point.step)} {_y(up, point.high)}" for point in points]
        below = [f"{_x(across, point.step)} {_y(up, point.low)}" for point in reversed(points)]
        yield f'<path d="M{"L".join(above + below)}Z" fill="{colour}" fill-opacity=".2"/>'
    if len(points) > 1:
        way = "L".join(f"{_x(across, point.step)} {_y(up, point.mean)}" for point in points)
        yield f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-linejoin="round"/>'
    elif points:
        yield _dot(points[0], across, up, "loss")


def _dot(point: Point, across: Scale, up: Scale, kind: str) -> str:
    return f'<circle cx="{_x(across, point.step)}" cy="{_y(up, point.mean)}" r="3" fill="{_COLOURS[kind]}"/>'


def _non_finite_marks(steps: Sequence[int], across: Scale) -> Iterator[str]:
    """Draw a mark on the axis for each step whose loss was NaN or infinite."""
    for x in sorted({_x(across, step) for step in steps}):
        yield f'<path d="M{x} {_HEIGHT - _BOTTOM}v-8" stroke="{_COLOURS["non_finite"]}" stroke-width="2"/>'


def _legend(loss: Curve, eval_loss: Curve) -> Iterator[str]:
    x = float(_WIDTH - _RIGHT)
    for kind, text in reversed(legend(loss, eval_loss)):
        yield f'<text x="{x}" y="{_TOP - 12}" text-anchor="end">{text}</text>'
        x -= 6.2 * len(text) + 8
        yield f'<circle cx="{x}" cy="{_TOP - 16}" r="4" fill="{_COLOURS[kind]}"/>'
        x -= 16


def _label(loss: Curve, eval_loss: Curve) -> str:
    curves = (("loss", loss), ("eval loss", eval_loss))
    return ", ".join(f"{name} {last_text(curve)}" for name, curve in curves if curve)
