"""Somebody who watches a run from a process of its own, as any script would.

    python -m tests.benchmarks.watcher JOB

Prints, for each `on_log` from here on, the step and the `time.monotonic()` of the callback.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from arkor import Trainer, TrainingLogContext


def tell(log: TrainingLogContext) -> None:
    print(json.dumps([log.step, time.monotonic()]), flush=True)


if __name__ == "__main__":
    logging.getLogger("arkor").setLevel(logging.ERROR)  # that the server has gone is meant
    Trainer.attach(sys.argv[1], since="now", callbacks={"on_log": tell}, progress=False).wait()
