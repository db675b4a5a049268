"""A project's entry file: find it, execute it, and return its trainer.

The entry file is `train.py` or `[tool.arkor] entry` in pyproject.toml. It defines
`arkor = create_arkor(trainer=…)` or `trainer = Trainer(…)` at module level.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.results.training_result import TrainingResult
from arkor.trainer.trainer import StartPrevented, Trainer, prevent_start

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_ENTRY = "train.py"


@frozen
class Arkor:
    """The manifest of a project: its trainer."""

    trainer: Trainer | None = None


def create_arkor(trainer: Trainer | None = None) -> Arkor:
    """Return the manifest that `arkor start` and `run_trainer()` read from the entry file."""
    if trainer is not None and not isinstance(trainer, Trainer):
        raise InvalidConfig("trainer", f"must be a Trainer, not {type(trainer).__name__}")
    return Arkor(trainer)


def is_arkor(value: Any) -> bool:
    return isinstance(value, Arkor)


def run_trainer(path: str | Path | None = None) -> TrainingResult:
    """Run the project's trainer to its end; `path` is the entry file or the project's folder."""
    return load_entry(path).wait()


def load_entry(path: str | Path | None = None) -> Trainer:
    """Execute the entry file and return its trainer; raise `InvalidConfig` if it has none."""
    file = find_entry(path)
    module = _execute(file)
    manifest, trainer = getattr(module, "arkor", None), getattr(module, "trainer", None)
    if isinstance(manifest, Arkor):
        if manifest.trainer is None:
            raise InvalidConfig("entry", f"create_arkor() in {file} has no trainer; write create_arkor(trainer=…)")
        return manifest.trainer
    if not isinstance(trainer, Trainer):
        raise InvalidConfig("entry", f"{file} has neither `arkor = create_arkor(trainer=…)` nor `trainer = Trainer(…)`")
    return trainer


def inspect_entry(path: str | Path | None = None) -> Trainer:
    """Return the trainer without starting a run, even if the file calls `start()` or `wait()`."""
    try:
        with prevent_start():
            return load_entry(path)
    except StartPrevented as prevented:
        return prevented.trainer


def find_entry(path: str | Path | None = None) -> Path:
    """Return the absolute path of the entry file; `path` is the file or its folder."""
    given = Path(path or ".").absolute()
    if given.is_file():
        return given
    if not given.is_dir():
        raise InvalidConfig("entry", f"{given} does not exist")
    configured = _configured_entry(given / "pyproject.toml")
    file = given / (configured or DEFAULT_ENTRY)
    if not file.is_file():
        remedy = "correct [tool.arkor] entry in pyproject.toml" if configured else "`arkor init` writes one"
        raise InvalidConfig("entry", f"{file} does not exist; {remedy}")
    return file


def _configured_entry(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        tool = tomllib.loads(file.read_text("utf-8")).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidConfig("entry", f"{file} cannot be read: {error}") from None
    section = tool.get("arkor", {}) if isinstance(tool, dict) else {}
    entry = section.get("entry") if isinstance(section, dict) else None
    if entry is not None and not isinstance(entry, str):
        raise InvalidConfig("entry", f"[tool.arkor] entry in {file} must be a string")
    return entry


def _execute(file: Path) -> ModuleType:
    """Execute the file as the module `arkor_entry`, with its folder first in `sys.path`.

    It is compiled each time: cached bytecode would miss an edit within the same second.
    """
    if file.suffix != ".py":
        raise InvalidConfig("entry", f"{file} is not a Python file")
    module = ModuleType("arkor_entry")
    module.__file__ = str(file)
    sys.modules["arkor_entry"] = module
    sys.path.insert(0, str(file.parent))
    try:
        exec(compile(file.read_bytes(), file, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the user's file
    finally:
        sys.path.remove(str(file.parent))
    return module
