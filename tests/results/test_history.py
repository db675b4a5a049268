"""The history of a run as rows and as columns."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arkor.errors import ArkorError
from arkor.results.history import History, Logged
from tests.fakes.run_server import RunServer, completed
from tests.fakes.sse_server import log_frame, send


def some() -> History:
    history = History()
    history.add(1, 2.0, None, 1e-4, 0.5, 12.0)
    history.add(2, math.nan)
    history.add(2, None, 0.25)
    return history


def test_rows_and_columns() -> None:
    history = some()
    assert len(history) == 3
    assert history[0] == Logged(1, 2.0, None, 1e-4, 0.5, 12.0)
    assert history[-1] == (2, None, 0.25, None, None, None)
    assert [row.eval_loss for row in history[1:]] == [None, 0.25]
    assert [row.step for row in history] == history.step == [1, 2, 2]
    assert (history.eval_loss, history.learning_rate) == ([None, None, 0.25], [1e-4, None, None])
    assert (history.epoch, history.samples_per_second) == ([0.5, None, None], [12.0, None, None])
    assert history.loss[0::2] == [2.0, None]
    assert math.isnan(history.loss[1] or 0.0)
    with pytest.raises(IndexError, match="the history has 3 logs"):
        history[3]


def test_a_zero_is_not_a_missing_number() -> None:
    history = History()
    history.add(0, 0.0)
    assert (history.step, history.loss) == ([0], [0.0])


def test_equal_histories_are_equal_and_survive_pickling() -> None:
    assert some() == some() == pickle.loads(pickle.dumps(some()))
    assert some() != History()
    assert some() != [1]


def test_a_step_beyond_64_bits_is_clipped() -> None:
    history = History()
    history.add(10**30, 1.0)
    assert history.step == [2**63 - 1]


def test_a_log_takes_less_than_300_bytes() -> None:
    history = History()
    tracemalloc.start()
    try:
        for step in range(1000, 11_000):
            history.add(step, step * 0.1, step * 0.2, step * 0.3, step * 0.4, step * 0.5)
        assert tracemalloc.get_traced_memory()[0] < 10_000 * 300
    finally:
        tracemalloc.stop()


def test_the_frame_has_the_columns_as_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    frame = some().to_pandas()
    assert list(frame.columns) == list(Logged._fields)
    assert [str(kind) for kind in frame.dtypes] == ["int64", *["float64"] * 5]
    assert frame["eval_loss"].iloc[2] == 0.25
    assert pandas.isna(frame["loss"].iloc[2])
    assert list(History().to_pandas().columns) == list(Logged._fields)


def test_the_plot_has_a_line_for_each_loss() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    axes = some().plot()
    assert [line.get_label() for line in axes.lines] == ["loss", "eval loss"]
    assert some().plot(axes) is axes
    assert History().plot().lines[:] == []


@pytest.mark.parametrize(("call", "module"), [("to_pandas", "pandas"), ("plot", "matplotlib")])
def test_a_missing_library_is_an_error_with_the_command_to_install_it(call: str, module: str) -> None:
    code = f"""
import sys
import tracemalloc
sys.modules[{module!r}] = None
from arkor.results.history import History
try:
    History().{call}()
except Exception as error:
    print(type(error).__name__, error)
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.startswith(f"ArkorError {call}() needs {module}; install it: pip install {module}")


def test_the_result_has_every_log(tmp_path: Path) -> None:
    with RunServer(send(log_frame(1), log_frame(2), log_frame(3), completed("4"))) as server:
        result = server.watch(tmp_path).wait()
    assert result.history.step == [1, 2, 3]
    assert repr(result.history) == "History(3 logs, steps 1 to 3)"


def test_an_interrupted_and_resumed_wait_has_every_log_once(tmp_path: Path) -> None:
    steps = [send(log_frame(1), log_frame(2)), send(log_frame(3), completed("4"))]
    with RunServer(*steps) as server:
        trainer = server.watch(tmp_path, callback_errors="raise", callbacks={"on_log": fail_once_at_step_2()})
        with pytest.raises(ArkorError, match="enough"):
            trainer.wait()
        assert trainer.wait().history.step == [1, 2, 3]


def fail_once_at_step_2() -> Callable[[Any], None]:
    left = [2]

    def on_log(log: Any) -> None:
        if left and log.step == left[0]:
            left.clear()
            raise ArkorError("enough")

    return on_log


def test_attaching_in_the_middle_has_the_later_logs(tmp_path: Path) -> None:
    with RunServer(send(log_frame(3), completed("4"))) as server:
        assert server.watch(tmp_path, since="2").wait().history.step == [3]


def test_representations_of_a_history() -> None:
    assert History()._repr_html_() == "no logs"
    assert some()._repr_html_().startswith("<img")
    assert repr(History()) == "History(no logs)"
