"""Zips from elsewhere: whole ones become runs, hostile ones leave nothing behind."""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from arkor.backend.store import run_registry
from arkor.backend.store.run_registry import InvalidRunFolder, unpack
from arkor.errors import InvalidConfig
from arkor.protocol.run_archive import archived_files, as_zip, pack
from tests.backend.caller import Caller, owner, stranger
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # most have a backend of their own

ID = "0123456789abcdef" * 2
JOB = {"id": ID, "name": "from elsewhere", "createdAt": "2026-01-02T03:04:05Z", "config": {"model": "scripted/model"}}
EVENTS = "".join(
    json.dumps({"type": kind, "jobId": ID, "timestamp": "2026-01-02T03:04:06Z", **rest}, separators=(",", ":")) + "\n"
    for kind, rest in (("training.started", {}), ("training.log", {"step": 1, "loss": 0.5}), ("training.completed", {}))
)
RUN = {"job.json": json.dumps(JOB), "events.jsonl": EVENTS, "worker.log": "hello\n"}
ADAPTER = {"final/adapter_config.json": '{"peft_type": "LORA"}', "final/adapter_model.safetensors": "weights"}

Files = Mapping[str, str | bytes]


def make_zip(files: Files, change: Callable[[zipfile.ZipInfo], None] = lambda entry: None) -> bytes:
    """A zip of these files; `change` alters each entry."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            change(entry)
            archive.writestr(entry, content)
    return target.getvalue()


def send(caller: Caller, data: bytes) -> requests.Response:
    return caller.call("POST", "/v1/jobs/import", data=data)


def everything_in(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if "backend.log" not in path.name}


@pytest.mark.parametrize("prefix", ["", f"{ID}/", "deeper/and deeper/"])
def test_a_whole_one(backend: Backend, prefix: str) -> None:
    files = {prefix + name: content for name, content in {**RUN, **ADAPTER}.items()}
    extra = {
        "__MACOSX/._job.json": "x",
        f"{prefix}secret.json": "{}",
        f"{prefix}final/.DS_Store": "x",
        "notes.txt": "n",
    }
    answer = send(owner(backend), make_zip({**files, **extra}))
    assert answer.status_code == 201, answer.text
    job = answer.json()["job"]
    assert (job["id"], job["name"], job["status"]) == (ID, "from elsewhere", "completed")
    folder = backend.home / "runs" / ID
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {*RUN, *ADAPTER}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, *folder.rglob("*")))
    kinds = [frame.event for frame in owner(backend).events(ID)]
    assert kinds == ["training.started", "training.log", "training.completed", "end"]


def test_twice_is_once(backend: Backend) -> None:
    caller, data = owner(backend), make_zip(RUN)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: send(caller, data), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert {answer.json()["job"]["id"] for answer in answers} == {ID}
    assert len(caller.call("GET", "/v1/jobs").json()["jobs"]) == 1


def test_a_run_of_somebody_else(backend: Backend) -> None:
    assert send(owner(backend), make_zip(RUN)).status_code == 201
    other = stranger(backend)
    refused = send(other, make_zip(RUN))
    assert (refused.status_code, refused.json()["code"]) == (409, "taken")
    assert other.call("GET", f"/v1/jobs/{ID}/export").status_code == 404
    assert other.call("GET", "/v1/jobs").json()["jobs"] == []


def test_nobody_comes_in_without_a_token(backend: Backend) -> None:
    assert send(Caller(backend.url, None), make_zip(RUN)).status_code == 401
    assert (
        send(Caller(backend.url, backend.token, {"orgSlug": "other", "projectSlug": "x"}), make_zip(RUN)).status_code
        == 403
    )


def link(entry: zipfile.ZipInfo) -> None:
    if entry.filename.startswith("final/"):
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16


def device(entry: zipfile.ZipInfo) -> None:
    entry.external_attr = (stat.S_IFCHR | 0o777) << 16


def ends_of(data: bytes) -> dict[str, bytes]:
    encrypted = bytearray(data)
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    unknown = bytearray(data)
    unknown[unknown.index(b"PK\x01\x02") + 10] = 99
    garbled = bytearray(data)
    garbled[60:90] = b"x" * 30
    return {"encrypted": bytes(encrypted), "unknown method": bytes(unknown), "garbled": bytes(garbled)}


HOSTILE: dict[str, bytes] = {
    "a way out": make_zip({**RUN, "../../escaped": "x"}),
    "a way out below": make_zip({**RUN, "final/../../../escaped": "x"}),
    "an absolute path": make_zip({**RUN, "/tmp/arkor-escaped": "x"}),
    "a drive": make_zip({**RUN, "C:/escaped": "x"}),
    "backslashes": make_zip({**RUN, "final\\..\\..\\escaped": "x"}),
    "a link": make_zip({**RUN, "final/adapter_model.safetensors": "/etc/passwd"}, link),
    "a device": make_zip(RUN, device),
    "no job": make_zip({"events.jsonl": EVENTS}),
    "no events": make_zip({"job.json": RUN["job.json"]}),
    "two runs": make_zip({"a/job.json": "{}", "b/job.json": "{}"}),
    "a job that is none": make_zip({**RUN, "job.json": "[1]"}),
    "a job without end": make_zip({**RUN, "job.json": "[" * 100_000}),
    "a job that is long": make_zip({**RUN, "job.json": json.dumps({**JOB, "name": "x" * 2_000_000})}),
    "another id": make_zip({**RUN, "job.json": json.dumps({**JOB, "id": "../../../escaped"})}),
    "events of another run": make_zip({**RUN, "events.jsonl": EVENTS.replace(ID, "f" * 32)}),
    "events that are none": make_zip({**RUN, "events.jsonl": "hello\n"}),
    "a file where a folder is": make_zip({**RUN, "final/a": "x", "final/a/b": "x"}),
    "an adapter of another kind": make_zip({**RUN, "final/adapter_config.json": '{"peft_type": "PROMPT_TUNING"}'}),
    "an adapter that is none": make_zip({**RUN, "checkpoints/1/adapter_config.json": "["}),
    "a name too long": make_zip({**RUN, f"final/{'x' * 300}": "x"}),
    "many files": make_zip({**RUN, **{f"final/{n}": "" for n in range(10_001)}}),
    "no zip": b"hello",
    "nothing": b"",
    "half": make_zip({**RUN, **ADAPTER})[:-40],
    **ends_of(make_zip(RUN)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_ones_leave_nothing(backend_env: Backend, caller: Caller, what: str) -> None:
    before = everything_in(backend_env.home.parent)
    refused = send(caller, HOSTILE[what])
    assert refused.status_code == 400, refused.text
    problem = refused.json()
    assert problem["code"] == "no_run"
    assert problem["error"].endswith(".")
    assert str(backend_env.home) not in problem["error"]
    assert everything_in(backend_env.home.parent) == before
    assert not Path("/tmp/arkor-escaped").exists()


def test_the_same_name_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as archive:
        archive.writestr("job.json", RUN["job.json"])
        archive.writestr("events.jsonl", "an earlier one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("events.jsonl", EVENTS)
    into = tmp_path / "into"
    into.mkdir()
    unpack(tmp_path / "run.zip", into)  # the last one counts, as everywhere with zips
    assert (into / "events.jsonl").read_text() == EVENTS


def test_what_becomes_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb: small on the way, and large then. What it says of its own size is not believed either."""
    monkeypatch.setattr(run_registry, "UNPACKED_LIMIT", 1_000_000)
    data = make_zip({**RUN, "final/zeros": b"\0" * 50_000_000})
    assert len(data) < 100_000
    (tmp_path / "run.zip").write_bytes(data)
    (tmp_path / "into").mkdir()
    with pytest.raises(InvalidRunFolder, match="becomes more than"):
        unpack(tmp_path / "run.zip", tmp_path / "into")
    lying = data.replace((50_000_000).to_bytes(4, "little"), (500).to_bytes(4, "little"))
    (tmp_path / "run.zip").write_bytes(lying)
    with pytest.raises(InvalidRunFolder):
        unpack(tmp_path / "run.zip", tmp_path / "into")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 1_200_000


def test_what_is_packed_comes_out_as_it_was(tmp_path: Path) -> None:
    folder, into = tmp_path / "a run", tmp_path / "into"
    big = os.urandom(3_000_000)
    for name, content in {**RUN, **ADAPTER, "checkpoints/7/state/x.safetensors": big}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "final" / ".half").write_text("x")
    os.utime(folder / "job.json", (0, 0))  # older than a zip can say
    pieces = list(pack(folder, archived_files(folder), "name"))
    assert max(map(len, pieces)) < 2_000_000
    (tmp_path / "run.zip").write_bytes(b"".join(pieces))
    into.mkdir()
    unpack(tmp_path / "run.zip", into)
    assert (into / "checkpoints/7/state/x.safetensors").read_bytes() == big
    assert not (into / "final/.half").exists()
    with as_zip(folder) as file:
        assert zipfile.is_zipfile(file)
    assert not file.exists()


def test_a_folder_with_a_link_is_not_packed(tmp_path: Path) -> None:
    for name, content in RUN.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "final").symlink_to("/etc")
    with pytest.raises(InvalidConfig, match="final is a link"):
        archived_files(tmp_path)


def test_a_run_whose_folder_is_gone(backend: Backend) -> None:
    caller = owner(backend)
    assert send(caller, make_zip(RUN)).status_code == 201
    (backend.home / "runs" / ID / "job.json").unlink()
    refused = caller.call("GET", f"/v1/jobs/{ID}/export")
    assert (refused.status_code, refused.json()["code"]) == (409, "incomplete")
    (backend.home / "runs" / ID).rename(backend.home / "gone")
    refused = send(caller, make_zip(RUN))
    assert refused.status_code == 400
    assert "its folder is missing; restore " in refused.json()["error"]
