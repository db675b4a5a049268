"""Numbers along an axis: where a value lies between its ends, and which round ones to write beside it."""

from __future__ import annotations

import math

from attrs import frozen

_LOGARITHMIC_FROM = 1000  # how many times larger than the smallest value the largest must be


@frozen
class Scale:
    """An axis from `low` to `high`, `low < high`, neither of them far beyond 1e300."""

    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def around(cls, low: float, high: float, *, may_bend: bool = False) -> Scale:
        """One that has room for both; logarithmic, if it `may_bend`, where the values are of very different sizes."""
        if may_bend and low > 0 and high / low > _LOGARITHMIC_FROM:
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

    def ticks(self, most: int) -> list[float]:
        """Round values on the axis, at most `most` of them (at least two are asked for)."""
        return self._powers(most) if self.logarithmic else self._multiples(most)

    def _multiples(self, most: int) -> list[float]:
        """Of 1, 2 or 5 times a power of ten."""
        raw = (self.high - self.low) / max(1, most)
        power = 10.0 ** math.floor(math.log10(raw))
        for factor in (1, 2, 5, 10, 20):
            step = factor * power
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first < most:
                return [
                    round(number * step, 12) if abs(step) > 1e-9 else number * step for number in range(first, last + 1)
                ]
        return []

    def _powers(self, most: int) -> list[float]:
        """Powers of ten, every so many; with fewer than two of them on the axis, its ends."""
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        stride = max(1, math.ceil((last - first + 1) / most))
        powers = [10.0**exponent for exponent in range(first, last + 1, stride)]
        return powers if len(powers) > 1 else [self.low, self.high]


def tick_text(value: float) -> str:
    """`"0.05"`, `"2000"`, `"1e-05"`."""
    return f"{value:.4g}"
