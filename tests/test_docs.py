"""The documentation: its code runs, its links work, and every public name, setting and command is documented."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from attrs import frozen

import arkor
from arkor import callbacks
from arkor.backend.data.datasets import load_rows
from arkor.backend.data.faults import DataError
from arkor.backend.engine.hyperparameters import DEFAULTS
from arkor.backend.runs.paths import datasets_folder
from arkor.protocol.datasets import BlobDataset
from docs import write_help, write_site
from tests.conftest import PROJECT, Backend, start_backend, stop_backend

DOCS = PROJECT / "docs"
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"(?:<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


@frozen
class Block:
    """A fenced block; `note` is the HTML comment in the line above, `line` the number of the first line of its text."""

    language: str
    text: str
    note: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    source = page.read_text("utf-8")
    return [
        Block(found["language"], found["text"], found["note"] or "", source.count("\n", 0, found.start("text")) + 1)
        for found in _FENCE.finditer(source)
    ]


def named(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def run_page(page: Path, folder: Path) -> None:
    """Execute the Python blocks of a page in one namespace; `folder` is the current folder.

    A block below `<!-- file: NAME -->` is also written to a file. A block below `<!-- script: NAME -->` is only written
    to a file. A block below `<!-- prints -->` must equal the output of the preceding Python block.
    """
    namespace: dict[str, object] = {"__name__": "page"}
    printed = io.StringIO()
    for block in blocks_of(page):
        kind, _, name = block.note.partition(": ")
        if kind in ("file", "script"):
            (folder / name).write_text(block.text, "utf-8")
        if block.language == "python" and kind != "script":
            printed = io.StringIO()
            code = compile("\n" * (block.line - 1) + block.text, named(page), "exec", dont_inherit=True)
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        if block.note == "prints":
            assert printed.getvalue() == block.text, f"{named(page)}:{block.line}"


WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]


@pytest.fixture(scope="module")
def backend_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with the scripted engine, shared by all pages."""
    started = start_backend(tmp_path_factory.mktemp("docs-home"), "--engine", "scripted")
    yield started
    stop_backend(started.home)
    started.process.wait()


@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_the_code_of_a_page_runs(
    page: Path, backend_env: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ARKOR_HOME", str(backend_env.home))
    before = signal.getsignal(signal.SIGTERM)
    try:
        run_page(page, folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_data_errors_equal_those_in_the_data_page(tmp_path: Path) -> None:
    blocks = {block.note: block.text for block in blocks_of(DOCS / "data.md")}
    shown = [note.removeprefix("faults of: ") for note in blocks if note.startswith("faults of: ")]
    assert shown
    for name in shown:
        content = blocks[f"file: {name}"].encode()
        digest = hashlib.sha256(content).hexdigest()
        datasets_folder(tmp_path).mkdir(exist_ok=True)
        (datasets_folder(tmp_path) / digest).write_bytes(content)
        with pytest.raises(DataError) as fault:
            load_rows(BlobDataset(f"/v1/datasets/{digest}/{name}"), home=tmp_path)
        assert f"{fault.value}\n" == blocks[f"faults of: {name}"]


def test_every_block_names_its_language() -> None:
    for page in PAGES:
        fences = re.findall(r"^```(\w*)$", page.read_text("utf-8"), re.M)
        assert all(fences[::2]), f"{named(page)} has a block without a language"
        assert not any(fences[1::2]), f"{named(page)} has a block that is not closed"


_LINK = re.compile(r"\]\((?!https?://)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_between_pages_work(page: Path) -> None:
    for link in _LINK.finditer(page.read_text("utf-8")):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        assert target.exists(), f"{named(page)}: {link[0]}"
        assert not link["anchor"] or link["anchor"] in anchors_of(target), f"{named(page)}: {link[0]}"


#: Anchors of renamed headings: links from outside of the repository use them.
FORMER_ANCHORS = {
    "backends.md": ("when-a-worker-dies", "what-lies-in-arkor_home", "who-gets-in"),
    "callbacks.md": ("ready-made-ones", "stopping-from-a-callback"),
    "data.md": ("how-a-row-may-look", "what-is-trained-on-what-is-held-out"),
    "deployments.md": ("what-is-kept-where",),
    "inference.md": ("answers-of-a-form", "an-answer-as-an-object", "what-a-message-says-is-text"),
    "notebooks.md": ("every-number",),
    "reliability.md": ("what-is-not-promised",),
    "studio.md": ("who-may-look",),
    "trainer.md": ("as-a-project",),
    "trainer-control.md": ("two-processes",),
}


@pytest.mark.parametrize("page", FORMER_ANCHORS)
def test_former_anchors_still_exist(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    assert not [anchor for anchor in FORMER_ANCHORS[page] if text.count(f'<a id="{anchor}"></a>') != 1]


def test_every_page_is_reachable_from_the_readme() -> None:
    reached, waiting = set(), [PROJECT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = {(page.parent / link["path"]).resolve() for link in _LINK.finditer(page.read_text("utf-8"))}
        waiting += [link for link in links - reached if link.suffix == ".md"]
    assert not set(PAGES) - reached


def test_every_public_name_is_documented() -> None:
    words = set(re.findall(r"\w+", (DOCS / "reference.md").read_text("utf-8")))
    assert not set(arkor.__all__) - words


def test_the_names_that_come_from_typescript_are_there() -> None:
    table = (DOCS / "guides" / "typescript.md").read_text("utf-8").split("| TypeScript | Python |")[1].split("\n\n")[0]
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| `")]
    theirs = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    ours = {name for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    assert ours - set(arkor.__all__) <= {"infer"}
    assert {re.sub(r"(?<=[a-z])([A-Z])", r"_\1", name).lower() for name in theirs if name[0].islower()} - ours <= {
        "default_arkor_cloud_api_url"
    }


def test_every_ready_made_callback_is_documented() -> None:
    words = set(re.findall(r"\w+", (DOCS / "reference.md").read_text("utf-8")))
    assert not set(callbacks.__all__) - words


def test_every_public_name_has_a_docstring() -> None:
    reference = (DOCS / "reference.md").read_text("utf-8")
    names = {name for _, names in write_site.sections(reference) for name in names}
    assert names >= {name for name in arkor.__all__ if callable(getattr(arkor, name))}, "a name stands in no table"
    values = {name: write_site.public(name) for name in names}
    for name in names:
        if inspect.isclass(values[name]):
            values |= {f"{name}.{member}": method for member, method in write_site.members(values[name])}
    assert not {name for name, value in values.items() if not value.__doc__}


def settings_table() -> dict[str, list[str]]:
    """Field → the cells of its row in configuration.md."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (DOCS / "configuration.md").read_text("utf-8"), re.M)
    return {name: cells.split(" | ") for name, cells in rows}


def test_every_setting_of_a_run_is_documented() -> None:
    assert settings_table().keys() == {field.name for field in attrs.fields(arkor.JobConfig)} - {"extra"}


def test_every_variable_of_the_environment_is_documented() -> None:
    read = {
        name
        for file in (PROJECT / "arkor").rglob("*.py")
        for name in re.findall(r"ARKOR_[A-Z_]+", file.read_text("utf-8"))
    }
    output = set(re.findall(r"^\| `(ARKOR_[A-Z_]+)` \|", (DOCS / "backends.md").read_text("utf-8"), re.M))
    assert output == {name for name in read if not name.startswith("ARKOR_SCRIPTED_")}


def test_the_defaults_are_those_of_the_engine() -> None:
    table = settings_table()
    for name, value in DEFAULTS.items():
        assert value is None or f"`{value}`" in table[name], f"configuration.md: {name} is {value} by default"


def test_the_help_texts_are_those_of_the_commands() -> None:
    page = write_help.PAGE.read_text("utf-8")
    assert write_help.with_help(page) == page, "run: python docs/write_help.py"
    described = {block.note.removeprefix("help: ") for block in blocks_of(write_help.PAGE)}
    assert set(write_help.commands()) <= described


def folders_in_the_readme() -> set[str]:
    """Return the folders in the README's tree of the package, as paths below `arkor/`."""
    tree = next(block.text for block in blocks_of(PROJECT / "README.md") if block.text.startswith("arkor/\n"))
    parents, found = [""], set()
    for indent, name in re.findall(r"^((?:  )+)(\S+)/ ", tree, re.M):
        depth = len(indent) // 2
        parents[depth:] = [f"{parents[depth - 1]}{name}/"]
        found.add(parents[depth].rstrip("/"))
    return found


def test_the_readme_lists_the_folders_of_the_package() -> None:
    package = PROJECT / "arkor"
    folders = {folder for file in package.rglob("*.py") for folder in file.relative_to(package).parents}
    templates = {folder for folder in folders if folder.parts[:1] == ("templates",) and len(folder.parts) > 1}
    assert folders_in_the_readme() == {str(folder) for folder in folders - templates if folder.parts}


def test_llms_txt_lists_every_page() -> None:
    index = (DOCS / "llms.txt").read_text("utf-8")
    assert re.match(r"# .+\n\n> .+\n", index)
    links = re.findall(r"^- \[[^]]+\]\(([^)]+)\): \S.*$", index, re.M)
    assert len(links) == len(re.findall(r"^- ", index, re.M))
    assert sorted(links) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md") if p.name != "CONTRIBUTING.md")


def locked_versions(package: str) -> tuple[str, str]:
    """Return the locked versions of a package for Python 3.10, and for 3.11 and newer."""
    lock = (PROJECT / "requirements.lock").read_text("utf-8")
    pins = dict(re.findall(rf"^{package}==(\S+)(?: ; python_full_version (<|>=) '3\.11')?$", lock, re.M))
    versions = {condition: version for version, condition in pins.items()}
    return versions.get("<", versions.get("", "")), versions.get(">=", versions.get("", ""))


def test_the_tested_versions_are_those_of_the_lock() -> None:
    table = (DOCS / "installation.md").read_text("utf-8").partition("## Tested versions")[2]
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|$", table, re.M)
    assert {package for package, *_ in rows} >= {"torch", "transformers", "trl", "peft", "datasets"}
    assert {package: tuple(versions) for package, *versions in rows} == {
        package: locked_versions(package) for package, *_ in rows
    }


CONTRIBUTOR_PAGES = [PROJECT / "CONTRIBUTING.md", *sorted((DOCS / "contributing").glob("*.md"))]


@pytest.mark.parametrize("page", CONTRIBUTOR_PAGES, ids=named)
def test_the_paths_in_contributor_pages_exist(page: Path) -> None:
    paths = re.findall(r"`((?:arkor|docs|tests)/[\w/.-]+)`", page.read_text("utf-8"))
    assert not [path for path in paths if "NAME" not in path and not (PROJECT / path).exists()]
