"""Report a run to a tracker, or print what the tracker has stored: run by its own environment.

    python -m tests.trackers.report TRACKER write|read

`write` reports the run of `EVENTS` twice, like two processes that watch it. `read` prints a JSON list
of [name, step, value], in order of storage, with the value as text.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arkor.callbacks import Report
from tests.callbacks.replays import completed, log, replay

Entry = tuple[str, int, float]

EVENTS = [log(1, 2.0), log(2, 1.0), log(2, None, 1.5), log(3, math.nan), log(5, math.inf)]

#: The trackers that are not named like their environment, and the options of `Report`.
TRACKERS = {"tensorboardX": "tensorboard", "mlflow-skinny": "mlflow"}
OPTIONS: dict[str, dict[str, Any]] = {"wandb": {"mode": "offline", "project": "arkor"}}


def read_tensorboard() -> Iterator[Entry]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415
    from tensorboard.util.tensor_util import make_ndarray  # noqa: PLC0415

    events = EventAccumulator("runs/j").Reload()
    for tag in events.Tags()["tensors"]:
        yield from ((tag, event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag))


def read_tensorboard_x() -> Iterator[Entry]:
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

    (file,) = Path("runs/j").iterdir()
    data = file.read_bytes()
    while data:  # length (8 bytes), checksum (4), event, checksum (4)
        end = 12 + int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12:end]), data[end + 4 :]
        yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)


def read_mlflow() -> Iterator[Entry]:
    import mlflow  # noqa: PLC0415

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("arkor").experiment_id])
    assert (run.info.status, run.data.params["model"]) == ("FINISHED", "m")
    for name in run.data.metrics:
        yield from ((name, metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))


def read_wandb() -> Iterator[Entry]:
    from wandb.proto.wandb_internal_pb2 import Record  # noqa: PLC0415

    for file in sorted(Path("wandb").glob("offline-run-*/run-j.wandb")):
        for data in _leveldb_records(file.read_bytes()[7:]):
            history = Record.FromString(data).history
            values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in history.item}
            for name, value in values.items():
                if not name.startswith("_"):
                    yield name, values["_step"], float(value)


def _leveldb_records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """Yield the records of a log whose header of 7 bytes is cut off; they may span blocks."""
    position, record = 7, b""
    data = bytes(7) + data
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_trackio() -> Iterator[Entry]:
    from trackio.sqlite_storage import SQLiteStorage  # noqa: PLC0415

    (name,) = SQLiteStorage.get_runs("arkor")
    for row in SQLiteStorage.get_logs("arkor", name):
        step = row["step"]
        yield from ((key, step, float(value)) for key, value in row.items() if "/" in key)


READERS = {
    "tensorboard": read_tensorboard,
    "tensorboardX": read_tensorboard_x,
    "mlflow": read_mlflow,
    "mlflow-skinny": read_mlflow,
    "wandb": read_wandb,
    "trackio": read_trackio,
}


def main() -> None:
    name, action = sys.argv[1:]
    if action == "read":
        print(json.dumps([[tag, step, str(value)] for tag, step, value in READERS[name]()]))
        return
    tracker = TRACKERS.get(name, name)
    for _ in range(2):
        completed(replay(Report(tracker, **OPTIONS.get(tracker, {})), EVENTS), [])


if __name__ == "__main__":
    main()
