"""A series of numbers over the steps of a run, kept in as many points as a picture has room for."""

from __future__ import annotations

import math

from attrs import define, field

_MOST_POINTS = 512
_FARTHEST = 1e300  # a value beyond it is drawn there: sums of such values would overflow
LARGEST_STEP = 2**63 - 1  # what comes later is drawn there


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
    """Takes values one by one; at most `_MOST_POINTS` points are kept, neighbours merged as the curve grows longer.

    Values that are not finite are no points; `odd` are the steps of the first few, `odd_count` says how many.
    """

    points: list[Point] = field(factory=list)
    odd: list[int] = field(factory=list)
    odd_count: int = 0
    last: float | None = None
    _per_point: int = 1

    def add(self, step: int, value: float) -> None:
        """Take in the next value; costs about a microsecond, merging included."""
        self.last, step = value, min(step, LARGEST_STEP)
        if not math.isfinite(value):
            self.odd_count += 1
            if len(self.odd) < _MOST_POINTS:
                self.odd.append(step)
            return
        value = min(max(value, -_FARTHEST), _FARTHEST)
        points = self.points
        if points and points[-1].count < self._per_point:
            points[-1] = points[-1].merged(Point(step, value, value, value))
        else:
            points.append(Point(step, value, value, value))
            if len(points) > _MOST_POINTS:
                self._merge_neighbours()

    def _merge_neighbours(self) -> None:
        self._per_point *= 2
        pairs = zip(self.points[::2], self.points[1::2], strict=False)
        odd_one = self.points[-1:] if len(self.points) % 2 else []
        self.points = [left.merged(right) for left, right in pairs] + odd_one

    def __bool__(self) -> bool:
        return bool(self.points or self.odd)
