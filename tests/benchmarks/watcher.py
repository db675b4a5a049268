"""Watch a run from a separate process.

    python -m tests.benchmarks.watcher JOB

Prints the step and the `time.monotonic()` of each `on_log`.
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
    logging.getLogger("arkor").setLevel(logging.ERROR)  # the server is killed on purpose
    Trainer.attach(sys.argv[1], since="now", callbacks={"on_log": tell}, progress=False).wait()
