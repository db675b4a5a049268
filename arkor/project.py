"""A project: its manifest, and how its trainer is found.

The entry point is `train.py`, or `[tool.arkor] entry` in pyproject.toml; in it stands, at module level,
`arkor = create_arkor(trainer=…)` or `trainer = Trainer(…)`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.results.training_result import TrainingResult
from arkor.trainer.trainer import Trainer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_ENTRY = "train.py"


@frozen
class Arkor:
    """What a project offers; today, its trainer."""

    trainer: Trainer | None = None


def create_arkor(trainer: Trainer | None = None) -> Arkor:
    """The manifest that `arkor start` and `run_trainer()` look for in the entry point."""
    if trainer is not None and not isinstance(trainer, Trainer):
        raise InvalidConfig("trainer", f"must be a Trainer, not {type(trainer).__name__}")
    return Arkor(trainer)


def is_arkor(value: Any) -> bool:
    """Whether something is what `create_arkor` returns."""
    return isinstance(value, Arkor)


def run_trainer(path: str | Path | None = None) -> TrainingResult:
    """Find the project's trainer and wait for its run; `path` is the entry file or the project's folder."""
    return load_entry(path).wait()


def load_entry(path: str | Path | None = None) -> Trainer:
    """The trainer of the entry file. Raises `InvalidConfig` when there is none, and what the file itself raises."""
    file = find_entry(path)
    module = _execute(file)
    trainer = _trainer_of(module)
    if trainer is None:
        raise InvalidConfig("entry", f"{file} has neither `arkor = create_arkor(trainer=…)` nor `trainer = Trainer(…)`")
    return trainer


class _StartIntercepted(BaseException):
    """The file starts its trainer by itself; nothing that it catches, and all that there is to know."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer = trainer


def inspect_entry(path: str | Path | None = None) -> Trainer:
    """The same, but no run is started by looking, even if the file does so when it is loaded."""
    try:
        with _intercept_start():
            return load_entry(path)
    except _StartIntercepted as intercepted:
        return intercepted.trainer


@contextmanager
def _intercept_start() -> Iterator[None]:
    """In here no trainer starts: whoever wants to is caught in the act."""

    def start(trainer: Trainer, *_: Any, **__: Any) -> None:
        raise _StartIntercepted(trainer)

    originals = {name: getattr(Trainer, name) for name in ("start", "wait")}
    for name in originals:
        setattr(Trainer, name, start)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Trainer, name, original)


def find_entry(path: str | Path | None = None) -> Path:
    """The entry file, absolute; `path` is the file itself or the project's folder (default: the current one)."""
    given = Path(path or ".").absolute()
    if given.is_file():
        return given
    if not given.is_dir():
        raise InvalidConfig("entry", f"there is no {given}")
    configured = _configured_entry(given / "pyproject.toml")
    file = given / (configured or DEFAULT_ENTRY)
    if not file.is_file():
        then = "which [tool.arkor] entry in pyproject.toml names" if configured else "which `arkor init` writes"
        raise InvalidConfig("entry", f"there is no {file}, {then}")
    return file


def _configured_entry(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        tool = tomllib.loads(file.read_text("utf-8")).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidConfig("entry", f"{file} cannot be read: {error}") from None
    ours = tool.get("arkor", {}) if isinstance(tool, dict) else {}
    entry = ours.get("entry") if isinstance(ours, dict) else None
    if entry is not None and not isinstance(entry, str):
        raise InvalidConfig("entry", f"[tool.arkor] entry in {file} must be a string")
    return entry


class _UncachedLoader(SourceFileLoader):
    """Reads the source each time, as Python does with a script: a cache of bytecode may miss a quick edit."""

    def get_code(self, _fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _execute(file: Path) -> ModuleType:
    """Run the entry file as a module of its own, with its folder first on the path as for a script."""
    if file.suffix != ".py":
        raise InvalidConfig("entry", f"{file} is not a Python file")
    loader = _UncachedLoader("arkor_entry", str(file))
    spec = ModuleSpec("arkor_entry", loader, origin=str(file))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules["arkor_entry"] = module
    sys.path.insert(0, str(file.parent))
    try:
        loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def _trainer_of(module: ModuleType) -> Trainer | None:
    manifest = getattr(module, "arkor", None)
    if isinstance(manifest, Arkor):
        if manifest.trainer is None:
            raise InvalidConfig(
                "entry", f"create_arkor() in {module.__file__} has no trainer; write create_arkor(trainer=…)"
            )
        return manifest.trainer
    trainer = getattr(module, "trainer", None)
    return trainer if isinstance(trainer, Trainer) else None
