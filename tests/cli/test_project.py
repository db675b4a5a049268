"""`arkor init` and `arkor start`: what they print, and the exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from arkor.settings import VERSION
from arkor.trainer.project import load_entry, tomllib
from tests.cli.conftest import ARKOR, Run, WriteEntry
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # every test starts processes of its own


def test_the_version(run_anew: Run) -> None:
    assert run_anew("--version").stdout == f"arkor {VERSION}\n"


def test_help_lists_the_commands_in_the_order_of_their_use(run: Run) -> None:
    lines = run("--help").stdout.split("Commands:")[1].split("\n")
    named = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    runs = ["init", "check", "start", "dev", "jobs", "logs", "cancel", "chat", "export-run", "import"]
    assert named == [*runs, "endpoints", "serve", "login", "logout", "whoami", "doctor", "docs"]


# init


PROJECT_FILES = {"train.py", "data/train.jsonl", "README.md", "pyproject.toml", "AGENTS.md", ".gitignore"}


def files_in(folder: Path) -> set[str]:
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {str(file) for file in found if file.parts[0] != ".git"}


@pytest.mark.parametrize("template", ["triage", "translate", "redaction"])
def test_init_writes_a_project(run: Run, project: Path, template: str) -> None:
    done = run("init", "mine", "--template", template)
    assert done.returncode == 0
    assert files_in(project / "mine") == PROJECT_FILES | {"data/heldout.jsonl"}
    assert (project / "mine" / ".git").is_dir()
    assert done.stdout.endswith("Next:\n  cd mine\n  arkor start\n")


def test_init_overwrites_nothing(run_anew: Run, project: Path) -> None:
    (project / "train.py").write_text("mine")
    done = run_anew("init")
    assert done.returncode == 2
    assert "already has train.py; nothing was written. To overwrite: arkor init --yes" in done.stderr
    assert [file.name for file in project.iterdir()] == ["train.py"]


def test_init_works_in_a_folder_that_has_files(run: Run, project: Path) -> None:
    kept = {"README.md": "mine", "pyproject.toml": '[project]\nname = "mine"\n', "notes.txt": "mine"}
    for name, text in kept.items():
        (project / name).write_text(text)
    (project / ".gitignore").write_text("*.log\n.arkor")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    (project / "inner").mkdir()
    done = run("init", "--template", "blank")
    assert done.returncode == 0, done.stderr
    assert {name: (project / name).read_text() for name in kept} == kept
    assert (project / ".gitignore").read_text() == "*.log\n.arkor\n__pycache__/\n.venv/\n"
    assert f'pyproject.toml; add "arkor[local]>={VERSION}" to its dependencies' in done.stdout
    assert run("init", "inner", "--template", "blank").returncode == 0
    assert not (project / "inner" / ".git").exists(), "it is inside a repository"


def test_init_overwrites_what_it_may(run: Run, project: Path) -> None:
    (project / "train.py").write_text("mine")
    assert run("init", "--yes").returncode == 0
    assert "Trainer(" in (project / "train.py").read_text()
    assert run("init").returncode == 0, "the same files are not overwritten"


def test_init_with_a_name(run: Run, project: Path) -> None:
    assert run("init", "mine", "--template", "blank", "--name", 'My "bot" \u00e9').returncode == 0
    entry, declared = (project / "mine" / name for name in ("train.py", "pyproject.toml"))
    assert load_entry(entry).name == 'My "bot" \u00e9'
    parsed = tomllib.loads(declared.read_text())
    assert parsed["project"]["name"] == "my-bot"
    assert parsed["project"]["dependencies"] == [f"arkor[local]>={VERSION}"]
    assert "arkor docs" in (project / "mine" / "AGENTS.md").read_text()
    assert run("init", "other", "--name", " ").returncode == 2


def test_a_blank_project_runs(backend_env: Backend, run: Run, project: Path) -> None:
    assert run("init", "--template", "blank").returncode == 0
    entry = project / "train.py"
    entry.write_text(entry.read_text().replace("smollm2-135m-instruct", "scripted/model"))
    done = run("start")
    assert done.returncode == 0, done.stderr
    assert "step 30: scripted: Where is my parcel?" in done.stdout


def test_init_knows_four_templates(run: Run) -> None:
    done = run("init", "--template", "poetry")
    assert done.returncode == 2
    assert "'triage', 'translate', 'redaction', 'blank'" in done.stderr


def test_init_says_why_it_cannot_write(run: Run, project: Path) -> None:
    (project / "occupied").write_text("a file")
    done = run("init", "occupied/inside")
    assert done.returncode == 2
    assert "occupied" in done.stderr
    assert "Traceback" not in done.stderr


# start


def test_start_watches_a_run_to_its_end(backend_env: Backend, run_anew: Run, write_entry_point: WriteEntry) -> None:
    write_entry_point('print("hello from the entry")\n')
    done = run_anew("start")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    job_id = lines[1].removeprefix("demo: run ")
    assert lines == [
        "hello from the entry",
        f"demo: run {job_id}",
        f"Adapter: {backend_env.home}/runs/{job_id}/final",
        f"Chat with it: arkor chat {job_id}   (add --system if its rows have a system prompt)",
    ]
    assert "demo: training, 5 steps" in done.stderr
    assert "demo: checkpoint 5 saved" in done.stderr
    assert "demo: completed, step 5/5" in done.stderr


def test_start_takes_a_file_or_a_folder(
    backend_env: Backend, run: Run, write_entry_point: WriteEntry, project: Path
) -> None:
    file = write_entry_point()
    assert run("start", str(file)).returncode == 0
    assert run("start", str(project)).returncode == 0


def test_a_failed_run_ends_with_1(backend_env: Backend, run: Run, write_entry_point: WriteEntry) -> None:
    write_entry_point(model="scripted/fail")
    done = run("start")
    assert done.returncode == 1
    assert "failed: This model fails by design; name another one." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_an_entry_ends_with_2(run: Run, project: Path) -> None:
    done = run("start")
    assert done.returncode == 2
    assert str(project / "train.py") in done.stderr
    assert "arkor init" in done.stderr


@pytest.mark.parametrize("before", ["import numppy\n", "answer = 1 / 0\n", "def f():\n    raise KeyError('x')\nf()\n"])
def test_a_mistake_in_the_entry_is_shown_as_its_author_needs_it(
    run_anew: Run, write_entry_point: WriteEntry, before: str
) -> None:
    file = write_entry_point(before)
    done = run_anew("start")
    assert done.returncode == 2
    shown = done.stderr.splitlines()
    assert shown[0] == "Traceback (most recent call last):"
    assert shown[1].startswith(f'  File "{file}", line ')
    assert all(str(file) in line for line in shown if line.startswith("  File"))
    assert "Error" in shown[-1]


def test_a_syntax_error_in_the_entry_shows_the_line(run: Run, project: Path) -> None:
    (project / "train.py").write_text("trainer = (\n")
    done = run("start")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f'File "{project}/train.py", line 1' in done.stderr
    assert "SyntaxError" in done.stderr


def test_a_wrong_value_in_the_entry_names_the_line_and_the_field(run: Run, write_entry_point: WriteEntry) -> None:
    write_entry_point(steps=0)
    done = run("start")
    assert done.returncode == 2
    assert "train.py, line 3: max_steps: must be a whole number of at least 1, not 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_entry_without_a_trainer(run: Run, project: Path) -> None:
    (project / "train.py").write_text("trainer = None\n")
    done = run("start")
    assert done.returncode == 2
    assert "create_arkor" in done.stderr


def test_a_backend_that_nobody_serves(run: Run, write_entry_point: WriteEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "not a url")
    write_entry_point()
    done = run("start")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_callback_that_raises_in_raise_mode(backend_env: Backend, run: Run, write_entry_point: WriteEntry) -> None:
    file = write_entry_point(
        """
        def on_log(log):
            raise RuntimeError("as asked")
        """,
        arguments=', callbacks={"on_log": on_log}, callback_errors="raise"',
    )
    done = run("start")
    assert done.returncode == 2
    assert f'File "{file}"' in done.stderr
    assert "RuntimeError: as asked" in done.stderr
    assert "The run continues. Watch it: arkor logs " in done.stderr


def how_to_go_on(job_id: str) -> list[str]:
    return [
        f"The run continues. Watch it: arkor logs {job_id} --follow. Stop it: arkor cancel {job_id}",
        f'To attach its callbacks: Trainer.attach("{job_id}", callbacks=…).wait()',
    ]


def test_a_callback_that_stops_waiting(slow_backend: Backend, run: Run, write_entry_point: WriteEntry) -> None:
    write_entry_point(
        """
        def on_log(log):
            log.stop_waiting("enough seen")
        """,
        steps=20,
        arguments=', callbacks={"on_log": on_log}',
    )
    done = run("start")
    assert done.returncode == 1
    job_id = done.stdout.split()[2]
    assert done.stderr.splitlines()[-3].startswith("enough seen; ")
    assert done.stderr.splitlines()[-2:] == how_to_go_on(job_id)
    assert run("logs", job_id, "--follow").stdout.splitlines()[-1].endswith("completed")
    as_json = run("start", "--json")
    assert as_json.stdout == ""
    assert "The run continues. Watch it: arkor logs " in as_json.stderr


@pytest.fixture
def slow_backend(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Backend:
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.1")
    return request.getfixturevalue("backend")  # type: ignore[no-any-return]


def test_ctrl_c_leaves_the_run_going(
    slow_backend: Backend, run: Run, write_entry_point: WriteEntry, project: Path
) -> None:
    write_entry_point(steps=60)
    command = [*ARKOR, "start"]
    watching = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    job_id = watching.stdout.readline().split()[-1]
    assert watching.stderr is not None
    while "training" not in (line := watching.stderr.readline()):
        assert line, "it has ended"
    watching.send_signal(signal.SIGINT)
    _, output = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert output.splitlines()[-2:] == how_to_go_on(job_id)
    assert "Traceback" not in output
    followed = run("logs", job_id[:12], "--follow").stdout.splitlines()
    assert followed[-1].endswith("completed")


def test_the_command_is_installed_beside_python() -> None:
    installed = Path(sys.executable).with_name("arkor")
    if not installed.exists():
        pytest.skip("arkor runs from its folder here, without being installed")
    output = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert output.stdout == f"arkor {VERSION}\n"
