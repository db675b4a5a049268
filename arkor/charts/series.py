"""The data of a loss chart: curves of a fixed number of points, scales of the axes, legend."""

from __future__ import annotations

import math

from attrs import define, field, frozen

_MAX_POINTS = 512
_MAX_VALUE = 1e300  # larger values are clipped, because their sums would overflow
MAX_STEP = 2**63 - 1  # later steps are clipped
_MIN_LOGARITHMIC_RATIO = 1000  # of the largest value to the smallest


@define
class Point:
    """The mean and the bounds of `count` neighbouring values; `step` belongs to the last."""

    step: int
    mean: float
    low: float
    high: float
    count: int = 1

    def merged(self, other: Point) -> Point:
        count = self.count + other.count
        mean = self.mean + (other.mean - self.mean) * (other.count / count)
        return Point(other.step, mean, min(self.low, other.low), max(self.high, other.high), count)


@define
class Curve:
    """A series of values in at most `_MAX_POINTS` points; neighbours are merged as it grows.

    Values that are not finite make no points: `non_finite` has the steps of the first of them,
    `non_finite_count` their number.
    """

    points: list[Point] = field(factory=list)
    non_finite: list[int] = field(factory=list)
    non_finite_count: int = 0
    last: float | None = None
    _per_point: int = 1

    def add(self, step: int, value: float) -> None:
        """Append a value; takes about a microsecond, merging included."""
        self.last, step = value, min(step, MAX_STEP)
        if not math.isfinite(value):
            self.non_finite_count += 1
            if len(self.non_finite) < _MAX_POINTS:
                self.non_finite.append(step)
            return
        value = min(max(value, -_MAX_VALUE), _MAX_VALUE)
        points = self.points
        if points and points[-1].count < self._per_point:
            points[-1] = points[-1].merged(Point(step, value, value, value))
        else:
            points.append(Point(step, value, value, value))
            if len(points) > _MAX_POINTS:
                self._per_point *= 2
                pairs = zip(points[::2], points[1::2], strict=False)
                self.points = [*(left.merged(right) for left, right in pairs), *points[len(points) // 2 * 2 :]]

    def __bool__(self) -> bool:
        return bool(self.points or self.non_finite)


@frozen
class Scale:
    """An axis from `low` to `high`, with `low < high` and neither far beyond 1e300."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def around(cls, low: float, high: float, *, may_be_logarithmic: bool = False) -> Scale:
        """Return a scale with both values; logarithmic, if allowed, for a large ratio."""
        if may_be_logarithmic and low > 0 and high / low > _MIN_LOGARITHMIC_RATIO:
            return cls(low, high, logarithmic=True)
        if high - low <= max(abs(low), abs(high)) * 1e-9:  # a single value
            margin = abs(low) * 0.1 or 1.0
            low, high = low - margin, high + margin
        return cls(low, high)

    def position(self, value: float) -> float:
        """Return 0 for the low end, 1 for the high end, clipped to them."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 5e-324))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self, max_ticks: int) -> list[float]:
        """Return at most `max_ticks` (at least 2) round values on the axis."""
        return self._powers(max_ticks) if self.logarithmic else self._multiples(max_ticks)

    def _multiples(self, max_ticks: int) -> list[float]:
        """Return multiples of 1, 2 or 5 times a power of ten."""
        raw = (self.high - self.low) / max(1, max_ticks)
        power = 10.0 ** math.floor(math.log10(raw))
        for factor in (1, 2, 5, 10, 20):
            step = factor * power
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first < max_ticks:
                values = (number * step for number in range(first, last + 1))
                return [round(value, 12) if abs(step) > 1e-9 else value for value in values]
        return []

    def _powers(self, max_ticks: int) -> list[float]:
        """Return powers of ten at equal distances, or the ends of an axis with fewer than two."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        stride = max(1, math.ceil((last - first + 1) / max_ticks))
        powers = [10.0**exponent for exponent in range(first, last + 1, stride)]
        return powers if len(powers) > 1 else [self.low, self.high]


def scales(loss: Curve, eval_loss: Curve, last_step: int | None = None) -> tuple[Scale, Scale] | None:
    """Return the scales of the steps, up to `last_step`, and of the losses; None without data."""
    points, odd = [*loss.points, *eval_loss.points], [*loss.non_finite, *eval_loss.non_finite]
    if not points and not odd:
        return None
    steps = [*(point.step for point in points), *odd]
    low = min((point.low for point in points), default=0.0)
    high = max((point.high for point in points), default=1.0)
    return (
        Scale.around(min(steps), max(*steps, min(last_step or 0, MAX_STEP))),
        Scale.around(low, high, may_be_logarithmic=True),
    )


def legend(loss: Curve, eval_loss: Curve) -> list[tuple[str, str]]:
    """Return a label for each of "loss", "eval_loss" and "non_finite" that the chart has."""
    entries = [("loss", f"loss {last_text(loss)}")] if loss else []
    entries += [("eval_loss", f"eval loss {last_text(eval_loss)}")] if eval_loss else []
    if odd := [*loss.non_finite, *eval_loss.non_finite]:
        count = loss.non_finite_count + eval_loss.non_finite_count
        entries.append(("non_finite", f"not finite: {count}, from step {min(odd)}"))
    return entries


def last_text(curve: Curve) -> str:
    return "" if curve.last is None else tick_text(curve.last)


def tick_text(value: float) -> str:
    """`"0.05"`, `"2000"`, `"1e-05"`."""
    return f"{value:.4g}"
