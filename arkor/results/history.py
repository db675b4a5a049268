"""The logs of a run as rows and as columns; `trainer/dispatcher.py` fills them in."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple, overload

from arkor.charts.series import MAX_STEP, Curve
from arkor.charts.svg import loss_image
from arkor.errors import ArkorError
from arkor.protocol.events import LOG_FIELDS, METRIC_FIELDS


class Logged(NamedTuple):
    """The numbers of one log; None if not logged, `float("nan")` for a diverged loss."""

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    samples_per_second: float | None = None


class History:
    """The logs of a run that this process received, in order.

    `len()`, iteration and indexing give `Logged` rows, attributes whole columns.
    """

    def __init__(self) -> None:
        self._rows: list[Logged] = []

    def add(self, step: int, *metrics: float | None) -> None:
        """Append a log: its step, clipped to the range of an int64 column, and `METRIC_FIELDS`."""
        self._rows.append(Logged(min(step, MAX_STEP), *metrics))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Logged]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Logged: ...

    @overload
    def __getitem__(self, index: slice) -> list[Logged]: ...

    def __getitem__(self, index: int | slice) -> Logged | list[Logged]:
        try:
            return self._rows[index]
        except IndexError:
            raise IndexError(f"the history has {len(self)} logs") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        return list(map(repr, self._rows)) == list(map(repr, other._rows))  # in which a NaN equals itself

    __hash__ = None  # type: ignore[assignment] # it is mutable

    @property
    def step(self) -> list[int]:
        """The step of each log; a step with an evaluation may have two."""
        return [row.step for row in self._rows]

    @property
    def loss(self) -> list[float | None]:
        """The training loss, in nats per token; None if not logged, `nan` if it diverged."""
        return [row.loss for row in self._rows]

    @property
    def eval_loss(self) -> list[float | None]:
        """The loss on held-out rows, in nats per token; None except on steps with an evaluation."""
        return [row.eval_loss for row in self._rows]

    @property
    def learning_rate(self) -> list[float | None]:
        """The step size of the optimizer."""
        return [row.learning_rate for row in self._rows]

    @property
    def epoch(self) -> list[float | None]:
        """Passes over the data so far, with a fraction."""
        return [row.epoch for row in self._rows]

    @property
    def samples_per_second(self) -> list[float | None]:
        """Rows trained per second."""
        return [row.samples_per_second for row in self._rows]

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with a column per number; missing numbers are NaN."""
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise ArkorError("to_pandas() needs pandas", remedy="install it: pip install pandas") from None
        frame = pandas.DataFrame(self._rows, columns=list(LOG_FIELDS))
        return frame.astype({"step": "int64", **dict.fromkeys(METRIC_FIELDS, "float64")})

    def plot(self, axes: Any = None) -> Any:
        """Draw loss and eval loss into matplotlib's `axes` (default: new ones); return them."""
        if axes is None:
            try:
                pyplot = import_module("matplotlib.pyplot")
            except ImportError:
                remedy = "install it: pip install matplotlib (in a notebook, result.history shows a chart without it)"
                raise ArkorError("plot() needs matplotlib", remedy=remedy) from None
            _, axes = pyplot.subplots()
        for name, values, marker in (("loss", self.loss, None), ("eval loss", self.eval_loss, "o")):
            pairs = [pair for pair in zip(self.step, values, strict=True) if pair[1] is not None]
            if pairs:
                axes.plot(*zip(*pairs, strict=True), marker=marker, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return axes

    def curves(self) -> tuple[Curve, Curve]:
        """Return loss and eval loss, reduced to the number of points that a chart shows."""
        loss, eval_loss = Curve(), Curve()
        for row in self._rows:
            if row.loss is not None:
                loss.add(row.step, row.loss)
            if row.eval_loss is not None:
                eval_loss.add(row.step, row.eval_loss)
        return loss, eval_loss

    def __repr__(self) -> str:
        if not self:
            return "History(no logs)"
        return f"History({len(self)} logs, steps {self._rows[0].step} to {self._rows[-1].step})"

    def _repr_html_(self) -> str:
        return loss_image(*self.curves()) if self else "no logs"
