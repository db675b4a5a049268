"""Every number that a run logged, as columns; who fills them in is `trainer/dispatcher.py`."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple, overload

from arkor.charts.series import MAX_STEP, Curve
from arkor.charts.svg import loss_image
from arkor.errors import ArkorError


class Logged(NamedTuple):
    """The numbers of one log; each is None where it was not said, a diverged loss is `float("nan")`."""

    step: int
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    samples_per_second: float | None = None


COLUMNS = Logged._fields


class History:
    """The logs of a run in their order: `len()`, iteration and indexing give `Logged` rows, attributes whole columns.

    It holds what this process has seen of the run: all of it, unless it was attached to with `since=`. A log takes 49
    bytes; a column is made into a list each time that it is asked for.
    """

    def __init__(self) -> None:
        self._steps = array("q")
        self._numbers = tuple(array("d") for _ in COLUMNS[1:])
        self._present = bytearray()  # a bit for each number of a log that is not None

    def add(  # noqa: PLR0917 - the columns in their order; keywords would cost half as much again
        self,
        step: int,
        loss: float | None = None,
        eval_loss: float | None = None,
        learning_rate: float | None = None,
        epoch: float | None = None,
        samples_per_second: float | None = None,
    ) -> None:
        """Take in a log; costs about half a microsecond."""
        columns = self._numbers  # one by one, as a loop over them takes twice as long
        columns[0].append(0.0 if loss is None else loss)
        columns[1].append(0.0 if eval_loss is None else eval_loss)
        columns[2].append(0.0 if learning_rate is None else learning_rate)
        columns[3].append(0.0 if epoch is None else epoch)
        columns[4].append(0.0 if samples_per_second is None else samples_per_second)
        present = (loss is not None) | (eval_loss is not None) << 1 | (learning_rate is not None) << 2
        self._present.append(present | (epoch is not None) << 3 | (samples_per_second is not None) << 4)
        self._steps.append(step if step < MAX_STEP else MAX_STEP)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Logged]:
        return (self._row(index) for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Logged: ...

    @overload
    def __getitem__(self, index: slice) -> list[Logged]: ...

    def __getitem__(self, index: int | slice) -> Logged | list[Logged]:
        if isinstance(index, slice):
            return [self._row(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"the history has {len(self)} logs")
        return self._row(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        mine, theirs = (self._steps, self._present, self._bits()), (other._steps, other._present, other._bits())
        return mine == theirs

    __hash__ = None  # type: ignore[assignment] # it grows

    # The columns

    @property
    def step(self) -> list[int]:
        """The step of each log; one that evaluates may have two."""
        return self._steps.tolist()

    @property
    def loss(self) -> list[float | None]:
        """The training loss, in nats per token; None where a log has none, `nan` where it diverged."""
        return self._column(0)

    @property
    def eval_loss(self) -> list[float | None]:
        """The loss on held-out rows, in nats per token; None but on steps that evaluate."""
        return self._column(1)

    @property
    def learning_rate(self) -> list[float | None]:
        """The optimizer's step size at each log."""
        return self._column(2)

    @property
    def epoch(self) -> list[float | None]:
        """Passes over the data so far, with a fraction."""
        return self._column(3)

    @property
    def samples_per_second(self) -> list[float | None]:
        """Rows that were trained on in a second."""
        return self._column(4)

    # As something else

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`, a column per number; what was not said is NaN. Raises `ArkorError` without pandas."""
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise ArkorError("to_pandas() needs pandas; install it: pip install pandas") from None
        columns = {"step": self.step, **{name: getattr(self, name) for name in COLUMNS[1:]}}
        frame = pandas.DataFrame(columns)
        return frame.astype({"step": "int64", **dict.fromkeys(COLUMNS[1:], "float64")})

    def plot(self, axes: Any = None) -> Any:
        """Draw loss and eval loss into matplotlib's `axes` (default: new ones), and return them.

        Raises `ArkorError` without matplotlib.
        """
        if axes is None:
            try:
                pyplot = import_module("matplotlib.pyplot")
            except ImportError:
                problem = "plot() needs matplotlib; install it: pip install matplotlib"
                raise ArkorError(f"{problem} (in a notebook, result.history draws itself without it)") from None
            _, axes = pyplot.subplots()
        for column, name, mark in ((0, "loss", None), (1, "eval loss", "o")):
            pairs = [
                (step, value) for step, value in zip(self.step, self._column(column), strict=True) if value is not None
            ]
            if pairs:
                axes.plot(*zip(*pairs, strict=True), marker=mark, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return axes

    def curves(self) -> tuple[Curve, Curve]:
        """Loss and eval loss, in as many points as a picture has room for."""
        loss, eval_loss = Curve(), Curve()
        for curve, column in ((loss, 0), (eval_loss, 1)):
            bit, values = 1 << column, self._numbers[column]
            for index, present in enumerate(self._present):
                if present & bit:
                    curve.add(self._steps[index], values[index])
        return loss, eval_loss

    def __repr__(self) -> str:
        if not self:
            return "History(no logs)"
        first, last = self._steps[0], self._steps[-1]
        return f"History({len(self)} logs, steps {first} to {last})"

    def _repr_html_(self) -> str:
        return loss_image(*self.curves()) if self else "no logs"

    def _row(self, index: int) -> Logged:
        present = self._present[index]
        numbers = (column[index] if present >> bit & 1 else None for bit, column in enumerate(self._numbers))
        return Logged(self._steps[index], *numbers)

    def _column(self, number: int) -> list[float | None]:
        bit = 1 << number
        pairs = zip(self._numbers[number], self._present, strict=True)
        return [value if present & bit else None for value, present in pairs]

    def _bits(self) -> list[bytes]:
        """To the bit, so that a NaN is equal to itself."""
        return [column.tobytes() for column in self._numbers]
