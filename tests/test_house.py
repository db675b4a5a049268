"""The architecture: layers, no import cycles, function length, and the cost of imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import arkor

PACKAGE = Path(arkor.__file__).parent

#: From the lowest layer to the highest; each imports only from lower layers and from itself.
LAYERS = (
    "errors < settings formatting files < protocol < charts < results < client"
    " < callbacks < display < trainer < __init__ < studio < cli < __main__"
).split(" < ")
BACKEND_LAYERS = (
    "engine < runs < store < data < compute < training < inference < workers < preflight < http"
    " < __main__ diagnostics __init__"
).split(" < ")

#: The highest layer that the backend, which is started as a process of its own, may import.
SHARED_WITH_BACKEND = "protocol"


def modules() -> dict[str, ast.Module]:
    """Parse every module of the package; the keys are names below `arkor.`."""
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
    """Return the modules of the package that a module imports, except inside `_repr_html_`."""
    found: set[str] = set()
    todo: list[ast.AST] = [MODULES[name]]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef) and node.name == "_repr_html_":
            continue
        todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "arkor":
            base = (node.module or "").removeprefix("arkor").removeprefix(".")
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {n if n in MODULES else base or "__init__" for n in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("arkor.") for a in node.names if a.name.startswith("arkor.")}
    return found - {name}


def layer_of(name: str) -> int:
    """Return the number of the layer that a module is in."""
    layers, parts = LAYERS, name.split(".")
    if parts[0] == "backend":
        layers, parts = BACKEND_LAYERS, parts[1:] or ["__init__"]
    levels = [level for level, layer in enumerate(layers) if parts[0] in layer.split()]
    assert len(levels) == 1, f"{name} is in no layer, or in several"
    return levels[0]


def package_of(name: str) -> str:
    """`client.http.urls` → `client`, `backend.runs.sse` → `backend.runs`."""
    return ".".join(name.split(".")[: 2 if name.startswith("backend") else 1])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name: str) -> None:
    in_backend = name.startswith("backend")
    for imported in imports_of(name):
        if in_backend and not imported.startswith("backend"):
            assert layer_of(imported) <= layer_of(SHARED_WITH_BACKEND), f"{name} imports {imported}"
            continue
        assert in_backend or not imported.startswith("backend"), f"{name} imports {imported}; a backend is started"
        down = layer_of(imported) < layer_of(name) or package_of(imported) == package_of(name)
        assert down, f"{name} imports {imported} upwards"


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
        if node.end_lineno - node.lineno + 1 > 50
    }
    assert not long


def test_every_module_has_a_docstring() -> None:
    undocumented = [name for name, tree in MODULES.items() if tree.body and not ast.get_docstring(tree)]
    assert not undocumented


@pytest.mark.parametrize("module", ["backend.engine", "backend.engine.interface"])
def test_the_interface_of_engines_loads_nothing_that_draws(module: str) -> None:
    drawing = ("arkor.charts", "arkor.results", "pandas", "matplotlib", "IPython")
    code = f"import sys, arkor.{module}; print([name for name in sys.modules if name.startswith({drawing!r})])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


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


#: What the first call to a backend needs, and only that; the last ones are a fifth of a second together.
NEEDED_BY_CALLS = (
    *(
        "arkor.client.api",
        "arkor.client.streaming.connection",
        "arkor.display",
        "arkor.charts",
        "arkor.results.history",
    ),
    *("msgspec", "sseclient", "concurrent", "rich", "http.client", "ssl", "asyncio", "tenacity", "urllib3", "requests"),
)


@pytest.mark.parametrize(
    "script", ["from arkor import Trainer", 'import arkor; arkor.Trainer("n", "m", arkor.HuggingFaceDataset("d"))']
)
def test_defining_a_run_loads_nothing_that_calls_a_backend(script: str) -> None:
    names = HEAVY + NEEDED_BY_CALLS
    code = f"import sys; {script}; print([name for name in {names!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def seconds_to_import(names: str) -> float:
    """Return the CPU time of an import, the least of five attempts."""
    code = f"import time; began = time.process_time(); {names}; print(time.process_time() - began)"
    return min(float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(5))


def test_importing_arkor_takes_little_more_than_its_dependencies() -> None:
    below = seconds_to_import("import requests, attrs, tenacity, sseclient")
    assert seconds_to_import("from arkor import *") < 2.5 * below


@pytest.mark.parametrize("process", ["backend.http.app", "backend.workers.worker", "backend.inference.process"])
def test_a_process_of_the_backend_loads_nothing_of_the_client(process: str) -> None:
    code = f"import sys, arkor.{process}; print([name for name in sys.modules if name.startswith('arkor.client')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_public_names_are_sorted_and_exist() -> None:
    assert arkor.__all__ == sorted(arkor.__all__)
    assert all(hasattr(arkor, name) for name in arkor.__all__)
    assert set(arkor.__all__) <= set(dir(arkor))


def test_type_checkers_read_the_same_list() -> None:
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8"))
    output = {a.name: n.module for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert {name: f"arkor.{module}" for name, module in arkor._MODULE_OF.items()} == output
    (listed,) = [n.value for n in stub.body if isinstance(n, ast.Assign)]
    assert ast.literal_eval(listed) == arkor.__all__


def test_submodules_are_attributes_of_the_package() -> None:
    code = "import arkor; print(arkor.callbacks.EarlyStopping.__name__, arkor.errors.ArkorError is arkor.ArkorError)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "EarlyStopping True"
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        arkor.Trainr  # type: ignore[attr-defined]  # noqa: B018
