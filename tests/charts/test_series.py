"""Curves of any length in a fixed number of points, and axes for any numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkor.charts.series import Curve, Scale, tick_text


def curve_of(values: list[float]) -> Curve:
    curve = Curve()
    for step, value in enumerate(values, start=1):
        curve.add(step, value)
    return curve


def test_a_short_curve_keeps_every_value() -> None:
    points = curve_of([3.0, 1.0, 2.0]).points
    assert [(p.step, p.mean, p.low, p.high) for p in points] == [(1, 3, 3, 3), (2, 1, 1, 1), (3, 2, 2, 2)]


@given(st.integers(min_value=1, max_value=5000))
def test_a_long_curve_keeps_count_sum_and_bounds_in_512_points(length: int) -> None:
    values = [float(n * 7919 % 1000) for n in range(length)]
    points = curve_of(values).points
    assert len(points) <= 512
    assert sum(point.count for point in points) == length
    assert sum(point.count * point.mean for point in points) == pytest.approx(sum(values))
    assert (min(point.low for point in points), max(point.high for point in points)) == (min(values), max(values))
    assert [point.step for point in points] == sorted({point.step for point in points})
    assert points[-1].step == length


def test_values_that_are_not_finite_are_marked_only() -> None:
    curve = curve_of([1.0, math.nan, math.inf, 2.0])
    assert [point.step for point in curve.points] == [1, 4]
    assert (curve.non_finite, curve.non_finite_count) == ([2, 3], 2)
    flooded = curve_of([math.nan] * 2000)
    assert (len(flooded.non_finite), flooded.non_finite_count, flooded.non_finite[0]) == (512, 2000, 1)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0.05, 2.2, ["0.5", "1", "1.5", "2"]),
        (3.0, 3.0, ["2.8", "3", "3.2"]),
        (1.0, 200.0, ["50", "100", "150", "200"]),
        (-5.0, 5.0, ["-4", "-2", "0", "2", "4"]),
        (1e-9, 3e-9, ["1e-09", "1.5e-09", "2e-09", "2.5e-09", "3e-09"]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[str]) -> None:
    assert [tick_text(tick) for tick in Scale.around(low, high).ticks(6)] == ticks


def test_an_axis_of_very_different_sizes_is_logarithmic() -> None:
    scale = Scale.around(0.001, 100, may_be_logarithmic=True)
    assert scale.logarithmic
    assert [tick_text(tick) for tick in scale.ticks(6)] == ["0.001", "0.01", "0.1", "1", "10", "100"]
    assert scale.position(0.1) == pytest.approx(0.4)
    assert not Scale.around(0.0, 100, may_be_logarithmic=True).logarithmic
    assert not Scale.around(0.1, 50, may_be_logarithmic=True).logarithmic


@given(*[st.floats(min_value=-1e300, max_value=1e300)] * 3, st.integers(2, 9), st.booleans())
def test_any_numbers_have_an_axis(a: float, b: float, value: float, max_ticks: int, may_be_logarithmic: bool) -> None:
    scale = Scale.around(min(a, b), max(a, b), may_be_logarithmic=may_be_logarithmic)
    assert 0 <= scale.position(value) <= 1
    ticks = scale.ticks(max_ticks)
    assert len(ticks) <= max_ticks
    assert ticks == sorted(ticks)
