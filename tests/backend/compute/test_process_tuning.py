"""What a process that computes asks of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from arkor.backend.compute.process_tuning import CACHED_SHAPES, limit_onednn_cache, other_process_cpu_seconds

#: A layer as large as the starter model's that is given batches of many lengths, as a run's are.
MANY_SHAPES = """
from arkor.backend.compute.process_tuning import peak_memory_bytes, prepare_to_compute
prepare_to_compute()
import torch
layer = torch.nn.Linear(1536, 1536, dtype=torch.bfloat16)
with torch.no_grad():
    layer(torch.ones(8, 1536, dtype=torch.bfloat16))
    before = peak_memory_bytes()
    for length in range(9, 209):
        layer(torch.ones(length, 1536, dtype=torch.bfloat16))
print((peak_memory_bytes() - before) // 2**20)
"""


@pytest.mark.slow
def test_batches_of_many_lengths_take_little_memory() -> None:
    command = [sys.executable, "-c", MANY_SHAPES]
    grown = int(subprocess.check_output(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True))
    assert grown < 90  # megabytes; 143 if every shape is remembered


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # and gone again at the end
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    limit_onednn_cache()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == str(CACHED_SHAPES)


SPIN = "import time\nwhile time.process_time() < 1: pass"


def test_what_another_process_computes_is_told_apart() -> None:
    others, began = other_process_cpu_seconds(), time.monotonic()
    subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert 0.9 < other_process_cpu_seconds() - others < (time.monotonic() - began + 0.1) * psutil.cpu_count()
    others, began, computed = other_process_cpu_seconds(), time.monotonic(), time.process_time()
    while time.process_time() < computed + 1:
        pass
    assert other_process_cpu_seconds() - others < (time.monotonic() - began + 0.1) * psutil.cpu_count() - 0.9
