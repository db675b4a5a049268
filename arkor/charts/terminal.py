"""A loss as a picture for a terminal: dots of Braille where it can show them, ASCII elsewhere.

Drawn here and not by a library: `Curve` has already brought a run of any length to a few hundred points, and what is
left to do is smaller than a dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from arkor.charts.series import Curve, Scale, tick_text

_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of the 4 × 2 dots in a Braille letter
_MIN_SIZE = 8  # columns and rows that a plot has at least
_TICK_ROWS = 4  # at most one tick for so many rows

Paint = Callable[[str, str], str]


def loss_plot(
    loss: Curve,
    eval_loss: Curve,
    *,
    columns: int = 80,
    rows: int = 20,
    unicode: bool = True,
    paint: Paint = lambda text, _: text,
) -> str:
    """Lines of at most `columns` letters, legend and axis included.

    `paint(text, colour)` colours a letter: `"blue"` is the loss, `"yellow"` an eval loss, `"red"` one that is not
    finite.
    """
    points = [*loss.points, *eval_loss.points]
    odd = [*loss.non_finite, *eval_loss.non_finite]
    if not points and not odd:
        return "nothing has been logged"
    steps = [point.step for point in points] + odd
    up = Scale.around(
        min((p.low for p in points), default=0.0), max((p.high for p in points), default=1.0), may_be_logarithmic=True
    )
    rows = max(_MIN_SIZE, rows - 3)
    labels = _labels(up, rows)
    margin = max(map(len, labels.values()), default=0)
    plot = _Plot(Scale.around(min(steps), max(steps)), up, max(_MIN_SIZE, columns - margin - 3), rows)
    cells = plot.cells(loss, eval_loss, unicode, paint)
    axis = "│" if unicode else "|"
    lines = [f"{labels.get(row, ''):>{margin}} {axis}{''.join(cells[row]).rstrip()}" for row in range(rows)]
    lines += plot.axis_labels(margin, unicode)
    return "\n".join([_legend(loss, eval_loss, up, unicode, paint), *lines])


class _Plot:
    """A field of `columns` × `rows` letters, each of which is 2 × 4 dots."""

    def __init__(self, across: Scale, up: Scale, columns: int, rows: int) -> None:
        self.across, self.up, self.columns, self.rows = across, up, columns, rows

    def cells(self, loss: Curve, eval_loss: Curve, unicode: bool, paint: Paint) -> list[list[str]]:
        grid = [[" "] * self.columns for _ in range(self.rows)]
        for (row, column), bits in self._line(loss).items():
            grid[row][column] = paint(chr(0x2800 + bits) if unicode else "*", "blue")
        for point in eval_loss.points:
            across, down = self._cell(point.step, point.mean, 1, 1)
            grid[down][across] = paint("●" if unicode else "o", "yellow")
        for step in (*loss.non_finite, *eval_loss.non_finite):
            grid[-1][self._cell(step, self.up.low, 1, 1)[0]] = paint("×" if unicode else "x", "red")
        return grid

    def _cell(self, step: int, value: float, wide: int, high: int) -> tuple[int, int]:
        """Column and row of a value, each letter being `wide` × `high` dots; row 0 is at the top."""
        across, down = self.columns * wide - 1, self.rows * high - 1
        return round(self.across.position(step) * across), down - round(self.up.position(value) * down)

    def _line(self, curve: Curve) -> Mapping[tuple[int, int], int]:
        found: dict[tuple[int, int], int] = {}
        for x, y in self._points_between(curve):
            cell = (y // 4, x // 2)
            found[cell] = found.get(cell, 0) | _BITS[y % 4][x % 2]
        return found

    def _points_between(self, curve: Curve) -> Iterator[tuple[int, int]]:
        """From one point to the next, without a gap."""
        before: tuple[int, int] | None = None
        for point in curve.points:
            here = self._cell(point.step, point.mean, 2, 4)
            (x, y), (to_x, to_y) = before or here, here
            dots = max(abs(to_x - x), abs(to_y - y), 1)
            yield from ((x + round((to_x - x) * n / dots), y + round((to_y - y) * n / dots)) for n in range(dots + 1))
            before = here

    def axis_labels(self, margin: int, unicode: bool) -> list[str]:
        """The axis of the steps."""
        line, numbers = ("─" if unicode else "-") * self.columns, ""
        for step in self.across.ticks(max(2, self.columns // 12)):
            text = str(int(step))
            at = round(self.across.position(step) * (self.columns - 1)) - len(text) // 2
            at = max(0, min(at, self.columns - len(text)))
            if step == int(step) and (not numbers or at > len(numbers)):
                numbers = numbers.ljust(at) + text
        return [f"{'':{margin}} {'└' if unicode else '+'}{line}", f"{'':{margin}}  {numbers}"]


def _labels(up: Scale, rows: int) -> dict[int, str]:
    """Row → the number beside it."""
    found = {}
    for value in up.ticks(max(2, rows // _TICK_ROWS)):
        found[rows - 1 - round(up.position(value) * (rows - 1))] = tick_text(value)
    return found


def _legend(loss: Curve, eval_loss: Curve, up: Scale, unicode: bool, paint: Paint) -> str:
    line, dot, cross = ("⠒⠒", "●", "×") if unicode else ("**", "o", "x")
    parts = [f"{paint(line, 'blue')} loss {_last(loss)}"] if loss else []
    parts += [f"{paint(dot, 'yellow')} eval loss {_last(eval_loss)}"] if eval_loss else []
    odd = loss.non_finite_count + eval_loss.non_finite_count
    parts += (
        [f"{paint(cross, 'red')} not finite: {odd}, from step {min([*loss.non_finite, *eval_loss.non_finite])}"]
        if odd
        else []
    )
    parts += ["(logarithmic)"] if up.logarithmic else []
    return "  ".join(parts)


def _last(curve: Curve) -> str:
    return "" if curve.last is None else tick_text(curve.last)
