"""Executed notebooks: the output of a cell during a run, and in the saved file."""

from __future__ import annotations

import re
import textwrap
import threading
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from arkor.display.notebook import NotebookProgress
from arkor.display.run_progress import RunProgress
from arkor.protocol.events import TrainingFailedEvent, TrainingLog, TrainingWarning
from arkor.results.history import History
from tests.fakes.run_server import RunServer
from tests.fakes.scripted_run import at, frames, scripted_run
from tests.fakes.sse_server import send

SLOW = pytest.mark.slow  # a kernel


def execute(server: RunServer, folder: Path, *cells: str, interrupt_after: int | None = None) -> Any:
    """Execute a notebook in which `trainer` is attached to the server's run."""
    prepare = f"""
    from arkor import AnonymousCredentials, Trainer
    identity = AnonymousCredentials("s3cret", "a", {server.url!r}, "o")
    settings = dict(base_url={server.url!r}, credentials=identity, project_dir={str(folder)!r})
    trainer = Trainer.attach("j", **settings)
    """
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in (prepare, *cells)]
    )
    client = NotebookClient(
        notebook,
        timeout=interrupt_after or 60,
        interrupt_on_timeout=interrupt_after is not None,
        allow_errors=interrupt_after is not None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    nbformat.validate(notebook)
    return notebook


def shown(cell: Any) -> list[Any]:
    return [output.data for output in cell.outputs if output.output_type == "display_data"]


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@SLOW
def test_a_cell_keeps_the_line_and_the_chart(tmp_path: Path) -> None:
    with RunServer(send(*frames(*scripted_run(60)))) as server:
        notebook = execute(server, tmp_path, "result = trainer.wait()", "result.history.step == list(range(1, 61))")
    (picture,) = shown(notebook.cells[1])
    assert picture["text/plain"] == "a run: completed, step 60/60, loss 0.0670 ↘, in 2:00"
    assert "eval loss 0.1237" in chart_of(picture["text/html"])
    assert "<script" not in picture["text/html"]
    assert printed(notebook.cells[1]) == ""
    assert notebook.cells[2].outputs[0].data["text/plain"] == "True"
    assert "s3cret" not in str([cell.outputs for cell in notebook.cells])


@SLOW
def test_what_callbacks_print_stays_below(tmp_path: Path) -> None:
    cell = """
    trainer = Trainer.attach("j", **settings, callbacks={"on_checkpoint": lambda ctx: print("saved", ctx.step)})
    trainer.wait()
    """
    with RunServer(send(*frames(*scripted_run(60)))) as server:
        notebook = execute(server, tmp_path, cell)
    assert printed(notebook.cells[1]) == "saved 20\nsaved 40\nsaved 60\n"
    assert len(shown(notebook.cells[1])) == 1


@SLOW
def test_an_interrupted_cell_shows_how_to_resume_and_the_next_one_resumes(tmp_path: Path) -> None:
    held, events = threading.Event(), frames(*scripted_run(60))
    with RunServer(send(*events[:30], until=held), send(*events[30:])) as server:
        try:
            notebook = execute(server, tmp_path, "trainer.wait()", "trainer.wait()", interrupt_after=3)
        finally:
            held.set()
    cut_short, went_on = notebook.cells[1:]
    assert [output.ename for output in cut_short.outputs if output.output_type == "error"] == ["KeyboardInterrupt"]
    assert "Trainer.attach(&#x27;j&#x27;).wait()" in shown(cut_short)[0]["text/html"]
    assert shown(cut_short)[0]["text/plain"].startswith("a run: 28/60 steps, loss 0.")
    assert shown(went_on)[0]["text/plain"].startswith("a run: completed, step 60/60")
    assert lowest_step_of(shown(went_on)[0]["text/html"]) == lowest_step_of(shown(cut_short)[0]["text/html"])


def chart_of(page: str) -> str:
    """Return the SVG in the page's image."""
    found = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert found
    return b64decode(found[1]).decode()


def lowest_step_of(page: str) -> float:
    """Return the x coordinate at which the line begins."""
    found = re.search(r'd="M([\d.]+) [\d.]+L', chart_of(page))
    assert found
    return float(found[1])


@SLOW
def test_a_restarted_kernel_draws_the_whole_chart_again_without_drawing_every_event(tmp_path: Path) -> None:
    count = """
    import time, IPython.display as display
    drawings, publish = [], display.publish_display_data
    def counted(*arguments, **named):
        drawings.append(time.monotonic())
        publish(*arguments, **named)
    display.publish_display_data = counted
    began = time.monotonic()
    result = trainer.wait()
    """
    with RunServer(send(b"".join(frames(*scripted_run(100_000, save_every=50_000))))) as server:
        notebook = execute(
            server, tmp_path, count, "len(drawings) <= 4 + 2 * (time.monotonic() - began), len(result.history)"
        )
    assert notebook.cells[2].outputs[0].data["text/plain"] == "(True, 100000)"
    (picture,) = shown(notebook.cells[1])
    assert picture["text/plain"].startswith("a run: completed, step 100000/100000")
    assert len(picture["text/html"]) < 50_000


@SLOW
@pytest.mark.parametrize("setting", ["progress=False", 'progress="auto"'])
def test_silence_in_a_notebook(tmp_path: Path, setting: str) -> None:
    with RunServer(send(*frames(*scripted_run(20)))) as server:
        notebook = execute(server, tmp_path, f'Trainer.attach("j", **settings, {setting}).wait();')
    assert len(shown(notebook.cells[1])) == (0 if "False" in setting else 1)


@SLOW
def test_a_status_is_replaced_and_removed_at_the_end(tmp_path: Path) -> None:
    cell = """
    from arkor.display import status_for
    with status_for("auto") as report:
        report("Reading <b>the data</b>")
        report("Timing a step")
    with status_for(False) as report:
        report("not shown")
    print("done")
    """
    with RunServer() as server:
        notebook = execute(server, tmp_path, cell)
    assert [dict(data) for data in shown(notebook.cells[1])] == [{"text/plain": "", "text/html": ""}]
    assert printed(notebook.cells[1]) == "done\n"


class Cell(NotebookProgress):
    """Keeps the published pages."""

    def __init__(self, run_progress: RunProgress, history: History | None = None) -> None:
        self.published: list[dict[str, str]] = []
        super().__init__(run_progress, history or History(), "j-1")

    def _publish(self, line: str, page: str) -> None:
        self.published.append({"text/plain": line, "text/html": page})


def test_a_name_or_an_error_cannot_break_out_of_the_page() -> None:
    with Cell(RunProgress("<img src=x onerror=alert(1)>")) as cell:
        cell.on_event(TrainingWarning("j", at(1), "<b>full</b>"))
        cell.on_event(TrainingFailedEvent("j", at(1), "</div><script>alert(2)</script>"))
    page = cell.published[-1]["text/html"]
    assert not re.search("<(img|b|script)[ >]", page)
    assert "warning: &lt;b&gt;full" in page


def test_a_cell_draws_a_few_times_a_second_and_not_at_all_when_nothing_changes() -> None:
    with Cell(RunProgress("triage", 100_000)) as cell:
        began = time.monotonic()
        for event in scripted_run(100_000):
            cell.on_event(event)
        assert len(cell.published) <= 2 + 2 * (time.monotonic() - began)
        cell._draw()
        drawn = len(cell.published)
        cell._draw()
        assert len(cell.published) == drawn


def test_only_an_interrupted_wait_shows_how_to_resume() -> None:
    for error, output in ((KeyboardInterrupt, True), (TimeoutError, True), (ValueError, False)):
        cell = Cell(RunProgress())
        with pytest.raises(error):
            with cell:
                raise error
        assert ("the run goes on" in cell.published[-1]["text/html"]) is output


def test_a_later_wait_shows_what_an_earlier_one_saw() -> None:
    history = History()
    history.add(1, 2.0)
    with Cell(RunProgress("triage", 10), history) as cell:
        cell.on_event(TrainingLog("j", at(1), 2, 1.0))
    assert "loss 2" in chart_of(cell.published[0]["text/html"])
    assert "loss 1" in chart_of(cell.published[-1]["text/html"])
