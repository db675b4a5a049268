"""A loss chart for a terminal: Braille dots, or ASCII where the encoding has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from arkor.charts.series import Curve, Scale, legend, scales, tick_text

_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of the 4 × 2 dots of a Braille character
_MIN_SIZE = 8  # columns and rows of a plot
_ROWS_PER_TICK = 4

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
    """Return lines of at most `columns` characters, legend and axes included.

    `paint(text, colour)` colours a character: `"blue"` for the loss, `"yellow"` for the eval loss,
    `"red"` for a loss that is not finite.
    """
    if not (axes := scales(loss, eval_loss)):
        return "nothing has been logged"
    across, up = axes
    rows = max(_MIN_SIZE, rows - 3)
    labels = {
        rows - 1 - round(up.position(value) * (rows - 1)): tick_text(value)
        for value in up.ticks(max(2, rows // _ROWS_PER_TICK))
    }
    margin = max(map(len, labels.values()), default=0)
    plot = _Plot(across, up, max(_MIN_SIZE, columns - margin - 3), rows)
    cells = plot.cells(loss, eval_loss, unicode, paint)
    axis = "│" if unicode else "|"
    return "\n".join(
        [
            _legend(loss, eval_loss, up, unicode, paint),
            *(f"{labels.get(row, ''):>{margin}} {axis}{''.join(cells[row]).rstrip()}" for row in range(rows)),
            *plot.step_axis(margin, unicode),
        ]
    )


class _Plot:
    """An area of `columns` × `rows` characters, each of 2 × 4 dots."""

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

    def _cell(self, step: int, value: float, width: int, height: int) -> tuple[int, int]:
        """Return the column and row of a value, for `width` × `height` dots a character."""
        across, down = self.columns * width - 1, self.rows * height - 1
        return round(self.across.position(step) * across), down - round(self.up.position(value) * down)

    def _line(self, curve: Curve) -> Mapping[tuple[int, int], int]:
        """Return the Braille bits of each (row, column) on the line."""
        found: dict[tuple[int, int], int] = {}
        for x, y in self._dots(curve):
            cell = (y // 4, x // 2)
            found[cell] = found.get(cell, 0) | _BITS[y % 4][x % 2]
        return found

    def _dots(self, curve: Curve) -> Iterator[tuple[int, int]]:
        """Yield the dots between neighbouring points, without gaps."""
        before: tuple[int, int] | None = None
        for point in curve.points:
            here = self._cell(point.step, point.mean, 2, 4)
            (x, y), (to_x, to_y) = before or here, here
            dots = max(abs(to_x - x), abs(to_y - y), 1)
            yield from ((x + round((to_x - x) * n / dots), y + round((to_y - y) * n / dots)) for n in range(dots + 1))
            before = here

    def step_axis(self, margin: int, unicode: bool) -> list[str]:
        line, numbers = ("─" if unicode else "-") * self.columns, ""
        for step in self.across.ticks(max(2, self.columns // 12)):
            text = str(int(step))
            at = round(self.across.position(step) * (self.columns - 1)) - len(text) // 2
            at = max(0, min(at, self.columns - len(text)))
            if step == int(step) and (not numbers or at > len(numbers)):
                numbers = numbers.ljust(at) + text
        return [f"{'':{margin}} {'└' if unicode else '+'}{line}", f"{'':{margin}}  {numbers}"]


def _legend(loss: Curve, eval_loss: Curve, up: Scale, unicode: bool, paint: Paint) -> str:
    line, dot, cross = ("⠒⠒", "●", "×") if unicode else ("**", "o", "x")
    signs = {"loss": paint(line, "blue"), "eval_loss": paint(dot, "yellow"), "non_finite": paint(cross, "red")}
    parts = [f"{signs[kind]} {text}" for kind, text in legend(loss, eval_loss)]
    return "  ".join([*parts, *(["(logarithmic)"] if up.logarithmic else [])])
