"""A series of values over the steps of a run, thinned to a fixed number of points, and the scale of an axis."""

from __future__ import annotations

import math

from attrs import define, field, frozen

_MAX_POINTS = 512
_MAX_VALUE = 1e300  # a value beyond it is drawn there: sums of such values would overflow
MAX_STEP = 2**63 - 1  # what comes later is drawn there


@define
class Point:
    """The values of neighbouring steps: where they are in the mean, and between which bounds."""

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
    """Takes values one by one; at most `_MAX_POINTS` points are kept, neighbours merged as the curve grows longer.

    Values that are not finite are no points; `non_finite` are the steps of the first few, `non_finite_count` says how
    many.
    """

    points: list[Point] = field(factory=list)
    non_finite: list[int] = field(factory=list)
    non_finite_count: int = 0
    last: float | None = None
    _per_point: int = 1

    def add(self, step: int, value: float) -> None:
        """Take in the next value; costs about a microsecond, merging included."""
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
                self._merge_neighbours()

    def _merge_neighbours(self) -> None:
        self._per_point *= 2
        pairs = zip(self.points[::2], self.points[1::2], strict=False)
        leftover = self.points[-1:] if len(self.points) % 2 else []
        self.points = [left.merged(right) for left, right in pairs] + leftover

    def __bool__(self) -> bool:
        return bool(self.points or self.non_finite)


_LOGARITHMIC_FROM = 1000  # how many times larger than the smallest value the largest must be


@frozen
class Scale:
    """An axis from `low` to `high`, `low < high`, neither of them far beyond 1e300."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def around(cls, low: float, high: float, *, may_be_logarithmic: bool = False) -> Scale:
        """One that has room for both; logarithmic, if it `may_be_logarithmic`, where the values are of very
        different sizes.
        """
        if may_be_logarithmic and low > 0 and high / low > _LOGARITHMIC_FROM:
            return cls(low, high, logarithmic=True)
        if high - low <= max(abs(low), abs(high)) * 1e-9:  # one value only
            margin = abs(low) * 0.1 or 1.0
            low, high = low - margin, high + margin
        return cls(low, high)

    def position(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 5e-324))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self, max_ticks: int) -> list[float]:
        """Round values on the axis, at most `max_ticks` of them (at least two are asked for)."""
        return self._powers(max_ticks) if self.logarithmic else self._multiples(max_ticks)

    def _multiples(self, max_ticks: int) -> list[float]:
        """Of 1, 2 or 5 times a power of ten."""
        raw = (self.high - self.low) / max(1, max_ticks)
        power = 10.0 ** math.floor(math.log10(raw))
        for factor in (1, 2, 5, 10, 20):
            step = factor * power
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first < max_ticks:
                return [
                    round(number * step, 12) if abs(step) > 1e-9 else number * step for number in range(first, last + 1)
                ]
        return []

    def _powers(self, max_ticks: int) -> list[float]:
        """Powers of ten, every so many; with fewer than two of them on the axis, its ends."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        stride = max(1, math.ceil((last - first + 1) / max_ticks))
        powers = [10.0**exponent for exponent in range(first, last + 1, stride)]
        return powers if len(powers) > 1 else [self.low, self.high]


def tick_text(value: float) -> str:
    """`"0.05"`, `"2000"`, `"1e-05"`."""
    return f"{value:.4g}"
