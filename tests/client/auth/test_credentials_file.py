"""The files of credentials and project state in unusual places, and with concurrent processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

from arkor.client.auth.credentials import (
    AnonymousCredentials,
    OAuthCredentials,
    TokenCredentials,
    credentials_path,
    read_credentials,
    remove_credentials,
    write_credentials,
)
from arkor.client.project_state import ProjectState, read_state, state_path, write_state
from tests.conftest import Backend

TOKEN = TokenCredentials("a-token-of-somebody", "https://backend.example")


def test_a_symbolic_link_is_kept(tmp_path: Path) -> None:
    elsewhere = tmp_path / "dotfiles" / "credentials.json"
    elsewhere.parent.mkdir()
    credentials_path().parent.mkdir(parents=True)
    credentials_path().symlink_to(elsewhere)
    write_credentials(TOKEN)
    assert credentials_path().is_symlink()
    assert read_credentials() == TOKEN
    assert elsewhere.stat().st_mode & 0o777 == 0o600
    assert remove_credentials()
    assert not elsewhere.exists()
    assert not credentials_path().is_symlink()


@pytest.mark.parametrize("umask", [0o000, 0o777, 0o022])
def test_the_file_is_private_whatever_the_umask(umask: int) -> None:
    before = os.umask(0o077)
    try:
        credentials_path().parent.mkdir(parents=True)
        os.umask(umask)
        write_credentials(TOKEN)
    finally:
        os.umask(before)
    assert credentials_path().stat().st_mode & 0o777 == 0o600
    assert read_credentials() == TOKEN


def test_a_public_file_becomes_private_when_it_is_written() -> None:
    write_credentials(TOKEN)
    credentials_path().chmod(0o644)
    write_credentials(evolve(TOKEN, token="another-token"))
    assert credentials_path().stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "credentials",
    [
        TOKEN,
        AnonymousCredentials("t", "a", "https://backend.example", "org"),
        OAuthCredentials("t", "r", 4e9, "login.example", "audience", "client"),
    ],
    ids=["token", "anon", "oauth"],
)
def test_unknown_fields_are_written_again(credentials: TokenCredentials) -> None:
    write_credentials(credentials)
    data = {**json.loads(credentials_path().read_text()), "ofTomorrow": {"a": [1]}}
    credentials_path().write_text(json.dumps(data))
    found = read_credentials()
    assert found == credentials
    assert found is not None
    write_credentials(found)
    assert json.loads(credentials_path().read_text()) == data


def test_a_reader_never_sees_a_partial_file() -> None:
    """One process writes as fast as it can, another one reads; then the writer is killed."""
    write_credentials(TOKEN)
    code = """
from arkor.client.auth.credentials import TokenCredentials, write_credentials
for number in range(10**9):
    write_credentials(TokenCredentials("t" * (number % 5000 + 1), "https://backend.example"))
"""
    with subprocess.Popen([sys.executable, "-c", code]) as writer:
        seen = set()
        while len(seen) < 30:
            found = read_credentials()
            assert isinstance(found, TokenCredentials)
            seen.add(len(found.token))
        writer.kill()
    assert isinstance(read_credentials(), TokenCredentials)


AS_NOBODY = """
import os, sys
from arkor import ensure_credentials, write_credentials, read_credentials, ArkorError
from arkor.client.auth.credentials import TokenCredentials, remove_credentials
os.setgroups([]); os.setgid(65534); os.setuid(65534)
calls = {
    "read": read_credentials,
    "ensure": lambda: ensure_credentials("http://127.0.0.1:1"),
    "write": lambda: write_credentials(TokenCredentials("t", "http://127.0.0.1:1")),
    "remove": remove_credentials,
}
try:
    print(calls[sys.argv[1]]())
except ArkorError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("call", "mode", "says"),
    [
        ("read", 0o755, "cannot be read (Permission denied)"),
        ("ensure", 0o777, "cannot be read (Permission denied)"),
        ("write", 0o755, "cannot be written (Permission denied)"),
        ("remove", 0o755, "cannot be removed (Permission denied)"),
    ],
)
def test_a_file_of_another_user_is_named_and_kept(
    call: str, mode: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room = Path("/tmp") / f"arkor-of-root-{os.getpid()}-{call}"
    monkeypatch.setenv("ARKOR_HOME", str(with_room))
    write_credentials(TOKEN)
    with_room.chmod(mode)
    try:
        command = [sys.executable, "-c", AS_NOBODY, call]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.startswith("CredentialsError"), done.stderr
        assert says in done.stdout
        assert read_credentials() == TOKEN
    finally:
        for file in with_room.iterdir():
            file.unlink()
        with_room.rmdir()


def test_a_home_below_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARKOR_HOME", str(tmp_path / "file" / "home"))
    assert read_credentials() is None


def test_a_project_state_may_be_a_link(tmp_path: Path) -> None:
    state = ProjectState("o", "p", "id")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".arkor").symlink_to(tmp_path / "elsewhere")
    write_state(state, tmp_path)
    assert read_state(tmp_path) == state
    assert state_path(tmp_path).parent.is_symlink()


CROWD = """
import json, os, sys, time
from pathlib import Path
from arkor import connect
url, folder, rounds, crowd = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
for number in range(rounds):
    home, project = folder / f"home-{number}", folder / f"project-{number}"
    project.mkdir()
    os.environ["ARKOR_HOME"] = str(home)
    at = time.time() + 0.05
    children = []
    for child in range(crowd):
        pid = os.fork()
        if not pid:
            time.sleep(max(at - time.time(), 0))
            try:
                client = connect(url, project_dir=project)
                pairs = [client.credentials.token, client.scope.org_slug, client.scope.project_slug]
                (folder / f"{number}-{child}.json").write_text(json.dumps(pairs))
                os._exit(0)
            except BaseException as error:
                print(number, repr(error), file=sys.stderr, flush=True)
                os._exit(1)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    pairs = {(folder / f"{number}-{child}.json").read_text() for child in range(crowd)}
    assert len(pairs) == 1, pairs
    kept = json.loads((home / "credentials.json").read_text())
    state = json.loads((project / ".arkor" / "state.json").read_text())
    assert json.loads(pairs.pop()) == [kept["token"], state["orgSlug"], state["projectSlug"]]
"""


@pytest.mark.slow
def test_many_processes_get_one_identity_and_one_project(backend: Backend, tmp_path: Path) -> None:
    """Eight times, eight new processes connect to a backend at once."""
    command = [sys.executable, "-c", CROWD, backend.url, str(tmp_path), "8", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
