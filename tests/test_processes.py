"""The trainer in processes that others manage: forked ones (Celery's prefork), and a Jupyter kernel."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from arkor import Trainer
from tests.conftest import Backend
from tests.fakes.run_server import RunServer
from tests.fakes.sse_server import log_frame, send

pytestmark = pytest.mark.slow

HUB = {"type": "huggingface", "name": "some/rows"}


def train(name: str, answers: Any) -> None:
    steps: list[int] = []
    trainer = Trainer(
        name, "some-model", HUB, max_steps=3, progress=False, callbacks={"on_log": lambda ctx: steps.append(ctx.step)}
    )
    answers.put((os.getpid(), str(trainer.wait().job.status), steps))


def test_processes_that_were_forked_off_have_connections_of_their_own(backend: Backend) -> None:
    """The parent has used arkor before it forks; so has its trainer, which the children go on with."""
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    train("before", answers)
    shared = Trainer("shared", "some-model", HUB, max_steps=3, progress=False)
    shared.start()
    children = [fork.Process(target=train, args=(f"child {n}", answers)) for n in range(2)]
    children.append(fork.Process(target=lambda: answers.put((os.getpid(), str(shared.wait().job.status), [1, 2, 3]))))
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert shared.wait().job.status == "completed"
    output = [answers.get() for _ in range(4)]
    assert len({pid for pid, _, _ in output}) == 4
    assert {(status, tuple(steps)) for _, status, steps in output} == {("completed", (1, 2, 3))}


def run_cell(client: BlockingKernelClient, code: str, interrupt: Any = None) -> dict[str, Any]:
    """Run a cell and return the kernel's reply, its printed text under `"text"`."""
    payload = client.execute(code)
    text, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=0.2)
        except Empty:
            continue
        if message["parent_header"].get("msg_id") != payload:
            continue
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
            if interrupt and "step 1" in text:
                time.sleep(0.3)  # so that the callback has returned, and the cell waits for the next event
                interrupt, interrupt_now = None, interrupt
                interrupt_now()
        elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            break
    reply = client.get_shell_msg(timeout=30)
    while reply["parent_header"].get("msg_id") != payload:  # a kernel that was slow to begin was greeted more than once
        reply = client.get_shell_msg(timeout=30)
    return {**reply["content"], "text": text}


def test_a_cell_of_a_notebook_can_be_interrupted_and_run_again(tmp_path: Path) -> None:
    held = threading.Event()
    with RunServer(send(log_frame(1), until=held)) as server:
        manager, client = start_new_kernel(kernel_name="python3")
        try:
            prepare = f"""
import threading
from arkor import AnonymousCredentials, Trainer
identity = AnonymousCredentials("t", "a", {server.url!r}, "o")
trainer = Trainer.attach("j", base_url={server.url!r}, credentials=identity, project_dir={str(tmp_path)!r},
                         progress=False, callbacks={{"on_log": lambda ctx: print("step", ctx.step)}})
"""
            assert run_cell(client, prepare)["status"] == "ok"
            began: list[float] = []

            def interrupt() -> None:
                began.append(time.monotonic())
                manager.interrupt_kernel()

            reply = run_cell(client, "trainer.wait()", interrupt)
            assert time.monotonic() - began[0] < 60  # it does not hang
            assert reply["ename"] == "KeyboardInterrupt"
            assert "step 1" in reply["text"]
            left = run_cell(client, "print([t.name for t in threading.enumerate() if t.name.startswith('arkor')])")
            assert left["text"] == "[]\n"
            again = run_cell(client, "try:\n    trainer.wait(timeout=0.2)\nexcept TimeoutError as e:\n    print(e)")
            assert again["text"] == "wait() reached its timeout; the run itself continues\n"
        finally:
            held.set()
            client.stop_channels()
            manager.shutdown_kernel(now=True)
