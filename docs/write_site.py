"""Builds the site of these pages into build/docs: `python docs/write_site.py`, or `make docs`.

The pages are as they stand here, with the files that their code writes and what it prints as titles; the reference gets
a page for each of its sections, written from the docstrings. Zensical makes the site of them, which needs no network.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import EnumMeta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

import arkor
from arkor import callbacks

DOCS = Path(__file__).parent
BUILD = DOCS.parent / "build"
SUFFIXES = (".css", ".js", ".md", ".png", ".svg")

#: What the offline search is given from elsewhere; site/search.js stands in for it.
ELSEWHERE = "https://unpkg.com/iframe-worker/shim"

#: A signature that is longer than this is written with a line per parameter.
LINE = 90

#: Parameters that are not for who calls: what Python passes, and what only arkor itself does.
UNTOLD = ("self", "cls", "steering", "client")

_NOTE = re.compile(r"^<!-- (?:(?:file|script): (?P<name>\S+)|prints|faults of: \S+) -->\n```(?P<language>\w+)$", re.M)
_SECTION = re.compile(r"^## (?P<title>.*)$", re.M)
_NAME = re.compile(r"`(\w+)`")


def titled(page: str) -> str:
    """The text of a page whose blocks show as a title which file they are, or that they are output."""

    def title(found: re.Match[str]) -> str:
        return f'```{found["language"]} title="{found["name"] or "This is printed"}"'

    return _NOTE.sub(title, page)


def sections(reference: str) -> Iterator[tuple[str, list[str]]]:
    """The sections of reference.md: each title with the public names in the first column of its tables."""
    parts = _SECTION.split(reference)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        cells = re.findall(r"^\| (`.*?) \|", text, re.M)
        names = [name for cell in cells for name in _NAME.findall(cell)]
        yield title, [name for name in names if callable(public(name))]


def public(name: str) -> Any:
    """What a name of the reference is, in `arkor` or `arkor.callbacks`. Raises AttributeError if it is in neither."""
    return getattr(arkor, name) if name in arkor.__all__ else getattr(callbacks, name)


def signature(name: str, value: Any) -> str:
    """How something is called, a line per parameter where they are many; of a property, its type."""
    if isinstance(value, property):
        return f"{name}: {inspect.signature(value.fget).return_annotation}"
    if isinstance(value, EnumMeta):
        return "\n".join(f"{name}.{member.name}  # {member.value!r}" for member in value)
    try:
        known = inspect.signature(value)
    except ValueError:  # an exception that is made as all exceptions are
        return f"{name}(message)"
    told = [parameter for parameter in known.parameters.values() if parameter.name not in UNTOLD]
    words = [written(parameter) for parameter in told]
    keywords = [place for place, parameter in enumerate(told) if parameter.kind is parameter.KEYWORD_ONLY]
    if keywords:
        words.insert(keywords[0], "*")
    answer = known.return_annotation
    end = ")" if answer in (known.empty, None, "None") else f") -> {answer}"
    line = f"{name}({', '.join(words)}{end}"
    return line if len(line) <= LINE else f"{name}(\n" + "".join(f"    {word},\n" for word in words) + end


def written(parameter: inspect.Parameter) -> str:
    """A parameter as it stands in the code: annotations are text there already, defaults that are made anew are `…`."""
    default = "…" if parameter.default is attrs.NOTHING else repr(parameter.default).replace("'", '"')
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
    spaced = " = " if kind else "="
    return f"{stars}{parameter.name}{kind}" + ("" if parameter.default is parameter.empty else spaced + default)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class and of its bases, each once; fields are in its signature."""
    seen = {field.name for field in attrs.fields(kind)} if attrs.has(kind) else set()
    for base in kind.__mro__:
        if base.__module__.startswith("arkor"):
            for name, value in vars(base).items():
                if name not in seen and is_public(name) and is_documented(value):
                    seen.add(name)
                    yield name, getattr(value, "__func__", value)


def is_public(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")


def is_documented(value: Any) -> bool:
    """Whether it is a method or a property, and not an alias, a field or the member of an enumeration."""
    return inspect.isfunction(value) or isinstance(value, (classmethod, property, staticmethod))


def described(name: str) -> str:
    """One public name as Markdown: how it is called, what it is, and the same of its methods."""
    value = public(name)
    parts = [f"## {name}", block(signature(name, value)), inspect.getdoc(value) or ""]
    for member, method in members(value) if inspect.isclass(value) else ():
        called = member == "__call__"
        shown = signature(name.lower() if called else member, method)
        parts += [f"### {name}{'(…)' if called else f'.{member}'}", block(shown), inspect.getdoc(method) or ""]
    return "\n\n".join(parts)


def block(code: str) -> str:
    return f"```python\n{code}\n```"


def slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def write_pages(folder: Path) -> None:
    """All that the site is made of, into an empty folder."""
    for file in sorted(DOCS.rglob("*")):
        if file.suffix in SUFFIXES:
            copy = folder / file.relative_to(DOCS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    for page in folder.rglob("*.md"):
        page.write_text(titled(page.read_text("utf-8")), "utf-8")
    write_reference(folder)


def write_reference(folder: Path) -> None:
    """A page for each section of reference.md, and the way there in that section."""
    table = folder / "reference.md"
    text = table.read_text("utf-8")
    (folder / "api").mkdir()
    for title, names in sections(text):
        page = f"api/{slug(title)}.md"
        (folder / page).write_text("\n\n".join([f"# {title}", *map(described, names)]) + "\n", "utf-8")
        text = text.replace(f"## {title}\n", f"## {title}\n\n[Signatures, methods, what they raise]({page})\n")
    table.write_text(text, "utf-8")


def build(folder: Path = BUILD) -> Path:
    """The site, in `docs` below the folder. Raises CalledProcessError where a link leads nowhere or a page is gone."""
    if find_spec("zensical") is None:
        raise SystemExit("The site is made by Zensical, which needs Python 3.11 or newer: pip install 'zensical<0.1'")
    shutil.rmtree(folder / "docs-source", ignore_errors=True)
    shutil.rmtree(folder / "docs", ignore_errors=True)
    (folder / "docs-source").mkdir(parents=True)
    write_pages(folder / "docs-source")
    settings = folder / "docs-source.toml"
    shutil.copyfile(DOCS / "site" / "settings.toml", settings)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(settings)]
    subprocess.run(command, check=True, cwd=folder)  # noqa: S603 - all of it is said here
    keep_to_itself(folder / "docs")
    return folder / "docs"


def keep_to_itself(site: Path) -> None:
    """Let every page load its script from the site."""
    for page in site.rglob("*.html"):
        above = "../" * (len(page.relative_to(site).parts) - 1)
        page.write_text(page.read_text("utf-8").replace(ELSEWHERE, f"{above}site/search.js"), "utf-8")


if __name__ == "__main__":
    sys.stdout.write(f"{build() / 'index.html'}\n")
