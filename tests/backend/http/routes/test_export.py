"""An export that its client interrupts."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from tests.backend.caller import owner
from tests.conftest import Backend


@pytest.mark.skipif(not psutil.LINUX, reason="lists the open files of the server")
def test_an_interrupted_export_closes_its_file(backend: Backend) -> None:
    caller = owner(backend)
    job = caller.submit(maxSteps=1)
    caller.until(job, "completed")
    file = backend.home / "runs" / job / "final" / "large.safetensors"
    file.write_bytes(os.urandom(2**20) * 64)  # more than the sockets' buffers hold
    server = psutil.Process(backend.process.pid)

    def is_open() -> bool:
        return str(file) in {entry.path for entry in server.open_files()}

    with caller.call("GET", f"/v1/jobs/{job}/export", stream=True) as answer:
        assert answer.raw.read(4096)
        assert is_open()
    deadline = time.monotonic() + 10
    while is_open():
        assert time.monotonic() < deadline
        time.sleep(0.02)
