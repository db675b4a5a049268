"""The house: who may import whom, no cycles, functions that fit on a screen, what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import arkor

PACKAGE = Path(arkor.__file__).parent

#: From the ground up; a room imports only from rooms that stand before it.
FLOORS = """
errors findings archive settings wire values rows chat standings evaluations charts history words cards estimates reports checks jobs events accounts deployments
client.frames client.plug client.patience client.retry client.replay client.addresses client.upgrade client.faults client.deprecation client.sessions client.http client.credentials client.oauth client.landing client.sign_in client.embedded
client.schemas client.replies client.check_stream client.answers client.api client.connection client.stream client.state client.connect
callbacks.steering callbacks.contexts callbacks.listeners callbacks.early_stopping callbacks.webhooks callbacks.postman callbacks.notify
callbacks.questions callbacks.metrics callbacks.evaluate callbacks.ledgers callbacks.trackers callbacks.report
callbacks dispatch display
description trainer project __init__
studio.address studio.guard studio.link studio.rendering studio.listing studio.relay studio.examine studio.entry studio.launches studio.weights studio.publishing studio.snippets studio.answers studio.pages.overview studio.pages.runs studio.pages.run studio.pages.playground studio.pages.endpoints studio.app studio.server
cli.errors cli.text cli.runs cli.chat cli.copies cli.endpoints cli.project cli.check cli.dev cli.serve cli.whoami cli.account cli.checkup cli.local cli.doctor cli.main __main__
""".split()

BACKEND_FLOORS = """
home expectations heartbeat bell log excerpts checkpoints pins past progress summary schema endpoints store conversations sse tail engine scripted process threads device models seams
data.records data.rows data.download data.datasets
training.plan training.tokens training.batches training.lora training.state training.sft training.engine_trl training.survey training.timing training.rehearsal
generation.completion generation.text generation.schemas generation.constraints generation.tools generation.calls generation.echo generation.sampling generation.trial generation.grammar generation.prompts generation.weights generation.answer generation.batch generation.generate
recovery copies inspection stop recorder worker serving examination demise checking supervisor inference openapi peer connection routes doorman app __main__
""".split()

#: Folders of rooms that have floors of their own.
FOLDERS = ("client", "studio", "studio.pages", "cli", "backend.data", "backend.training", "backend.generation")


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name below `arkor.`, parsed."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        relative = file.relative_to(PACKAGE)
        if relative.parts[0] != "templates":
            parts = [*relative.parts[:-1], relative.stem]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
            found[name] = ast.parse(file.read_text("utf-8"))
    return found


MODULES = modules()


def imports_of(name: str) -> set[str]:
    """The rooms of the house that a room imports anywhere in it, inside functions too."""
    found = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "arkor":
            base = (node.module or "").removeprefix("arkor").removeprefix(".")
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {n if n in MODULES else base or "__init__" for n in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("arkor.") for a in node.names if a.name.startswith("arkor.")}
    return found - {name}


def floor_of(name: str) -> tuple[str, int] | None:
    """The wing and the height of a room; a folder's height stands for the rooms in it that have none of their own."""
    wing, order, local = ("front", FLOORS, name)
    if name.startswith("backend"):
        wing, order, local = ("backend", BACKEND_FLOORS, name.removeprefix("backend").removeprefix(".") or "home")
    while local not in order:
        if "." not in local:
            return None
        local = local.rsplit(".", 1)[0]
    return wing, order.index(local)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name: str) -> None:
    here = floor_of(name)
    if here is None:
        assert name in FOLDERS, f"{name} stands on no floor; give it one in FLOORS"
        assert not imports_of(name)
        return
    for imported in imports_of(name):
        there = floor_of(imported)
        assert there is not None, f"{name} imports {imported}, which stands on no floor"
        if here[0] == "backend" and there[0] == "front":
            assert there[1] <= FLOORS.index("deployments"), (
                f"{name} imports {imported}; a backend shares only the vocabulary"
            )
        else:
            assert here[0] == there[0], f"{name} imports {imported}; the backend is started, not imported"
            same_folder = name.rsplit(".", 1)[0] == imported.rsplit(".", 1)[0] or imported == name.rsplit(".", 1)[0]
            assert there[1] < here[1] or (there[1] == here[1] and same_folder), f"{name} imports {imported} upwards"


def test_there_is_no_import_cycle() -> None:
    graph = {name: imports_of(name) & set(MODULES) for name in MODULES}
    while leaves := [name for name, needs in graph.items() if not needs]:
        for leaf in leaves:
            del graph[leaf]
        graph = {name: needs - set(leaves) for name, needs in graph.items()}
    assert not graph, f"a cycle among {sorted(graph)}"


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 > 60
    }
    assert not long


def test_every_room_says_what_lives_there() -> None:
    silent = [name for name, tree in MODULES.items() if tree.body and not ast.get_docstring(tree)]
    assert not silent


def test_the_readme_names_every_file_of_the_package() -> None:
    readme = (PACKAGE.parent / "README.md").read_text("utf-8")
    files = [str(f.relative_to(PACKAGE)) for f in PACKAGE.rglob("*.py") if f.read_text("utf-8").strip()]
    missing = [file for file in files if not file.startswith("templates/") and Path(file).name not in readme]
    assert not missing


HEAVY = (
    "torch",
    "transformers",
    "starlette",
    "uvicorn",
    "sqlalchemy",
    "datasets",
    "tqdm",
    "click",
    "IPython",
    "pandas",
    "matplotlib",
)


def test_importing_arkor_is_light() -> None:
    code = f"import sys, arkor; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def seconds_to_import(names: str) -> float:
    """Of the processor, the least of some tries."""
    code = f"import time; began = time.process_time(); {names}; print(time.process_time() - began)"
    return min(float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(5))


def test_importing_arkor_takes_little_beside_what_it_is_built_on() -> None:
    below = seconds_to_import("import requests, attrs, tenacity, sseclient")
    assert seconds_to_import("from arkor import *") < 2.5 * below


def test_windows_is_told_where_arkor_runs() -> None:
    code = "import sys, typing; sys.platform = 'win32'; import arkor"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith(
        "ImportError: arkor runs on Linux and macOS; on Windows, install and use it inside WSL\n"
    )


@pytest.mark.parametrize("process", ["backend.app", "backend.worker", "backend.serving"])
def test_a_process_of_the_backend_loads_nothing_of_the_client(process: str) -> None:
    code = f"import sys, arkor.{process}; print([name for name in sys.modules if name.startswith('arkor.client')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_public_list_is_sorted_and_true() -> None:
    assert arkor.__all__ == sorted(arkor.__all__)
    assert all(hasattr(arkor, name) for name in arkor.__all__)
    assert set(arkor.__all__) <= set(dir(arkor))


def test_type_checkers_read_the_same_list() -> None:
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8"))
    told = {a.name: n.module for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert {name: f"arkor.{room}" for name, room in arkor._ROOM_OF.items()} == told
    (listed,) = [n.value for n in stub.body if isinstance(n, ast.Assign)]
    assert ast.literal_eval(listed) == arkor.__all__


def test_a_room_is_reached_through_the_house() -> None:
    code = "import arkor; print(arkor.callbacks.EarlyStopping.__name__, arkor.errors.ArkorError is arkor.ArkorError)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "EarlyStopping True"
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        arkor.Trainr  # type: ignore[attr-defined]  # noqa: B018
