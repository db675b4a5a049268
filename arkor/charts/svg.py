"""A loss as a picture for a page: SVG without scripts, readable on light paper and on dark.

It goes into a page as an image of its own and not as a part of it: of a notebook that somebody was sent, only the
images are shown. An image knows nothing of the page's colours, hence one ink for the white of a light page, the black
of a dark one, and the grey of Colab's.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence

from arkor.charts.series import MAX_STEP, Curve, Point, Scale, tick_text

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 26, 30
_INK, _BLUE, _ORANGE, _RED = "#878787", "#3b82f6", "#d97706", "#ef4444"  # at least 3:1 on the paper of any notebook


def loss_image(loss: Curve, eval_loss: Curve, last_step: int | None = None) -> str:
    """The same as `loss_chart`, as an HTML image."""
    if not (chart := loss_chart(loss, eval_loss, last_step)):
        return ""
    data = b64encode(chart.encode()).decode()
    size = f'width="{_WIDTH}" height="{_HEIGHT}" style="max-width:100%;height:auto"'
    return f'<img {size} alt="{_aria_label(loss, eval_loss)}" src="data:image/svg+xml;base64,{data}">'


def loss_chart(loss: Curve, eval_loss: Curve, last_step: int | None = None) -> str:
    """The losses over the steps, up to `last_step` if that is farther than they got; `""` as long as they are empty."""
    points = [*loss.points, *eval_loss.points]
    odd = [*loss.non_finite, *eval_loss.non_finite]
    if not points and not odd:
        return ""
    steps = [point.step for point in points] + odd
    across = Scale.around(min(steps), max(*steps, min(last_step or 0, MAX_STEP)))
    up = Scale.around(
        min((point.low for point in points), default=0.0),
        max((point.high for point in points), default=1.0),
        may_be_logarithmic=True,
    )
    parts = [*_frame(across, up), *_line(loss.points, across, up), *_dots(eval_loss.points, across, up)]
    parts += [*_non_finite_marks(odd, across), *_legend(loss, eval_loss)]
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    font = f'font-family="system-ui, sans-serif" font-size="11" fill="{_INK}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} {font} role="img" aria-label="{_aria_label(loss, eval_loss)}">'
    )
    return f"{head}{''.join(parts)}</svg>"


def _x(across: Scale, step: float) -> float:
    return round(_LEFT + across.position(step) * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(up: Scale, value: float) -> float:
    return round(_HEIGHT - _BOTTOM - up.position(value) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _frame(across: Scale, up: Scale) -> Iterator[str]:
    """Grid lines with their numbers; the axes are named by what stands beside them."""
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
    """The mean of each point, and behind it a band of what lies between the bounds."""
    if any(point.count > 1 for point in points):
        above = [f"{_x(across, point.step)} {_y(up, point.high)}" for point in points]
        below = [f"{_x(across, point.step)} {_y(up, point.low)}" for point in reversed(points)]
        yield f'<path d="M{"L".join(above + below)}Z" fill="{_BLUE}" fill-opacity=".2"/>'
    way = "L".join(f"{_x(across, point.step)} {_y(up, point.mean)}" for point in points)
    if len(points) > 1:
        yield f'<path d="M{way}" fill="none" stroke="{_BLUE}" stroke-width="1.5" stroke-linejoin="round"/>'
    elif points:
        yield _dot(points[0], across, up, _BLUE)


def _dots(points: Sequence[Point], across: Scale, up: Scale) -> Iterator[str]:
    return (_dot(point, across, up, _ORANGE) for point in points)


def _dot(point: Point, across: Scale, up: Scale, colour: str) -> str:
    return f'<circle cx="{_x(across, point.step)}" cy="{_y(up, point.mean)}" r="3" fill="{colour}"/>'


def _non_finite_marks(steps: Sequence[int], across: Scale) -> Iterator[str]:
    """A mark at the foot of the chart for each step whose loss was NaN or infinite."""
    bottom = _HEIGHT - _BOTTOM
    for x in sorted({_x(across, step) for step in steps}):
        yield f'<path d="M{x} {bottom}v-8" stroke="{_RED}" stroke-width="2"/>'


def _legend(loss: Curve, eval_loss: Curve) -> Iterator[str]:
    entries = [(_BLUE, f"loss {_last(loss)}")] if loss else []
    entries += [(_ORANGE, f"eval loss {_last(eval_loss)}")] if eval_loss else []
    odd = loss.non_finite_count + eval_loss.non_finite_count
    entries += [(_RED, f"not finite: {odd}, from step {min([*loss.non_finite, *eval_loss.non_finite])}")] if odd else []
    x = float(_WIDTH - _RIGHT)
    for colour, text in reversed(entries):
        yield f'<text x="{x}" y="{_TOP - 12}" text-anchor="end">{text}</text>'
        x -= 6.2 * len(text) + 8
        yield f'<circle cx="{x}" cy="{_TOP - 16}" r="4" fill="{colour}"/>'
        x -= 16


def _last(curve: Curve) -> str:
    return "" if curve.last is None else tick_text(curve.last)


def _aria_label(loss: Curve, eval_loss: Curve) -> str:
    """What a screen reader says."""
    return ", ".join(f"{name} {_last(curve)}" for name, curve in (("loss", loss), ("eval loss", eval_loss)) if curve)
