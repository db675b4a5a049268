"""Build the documentation site in build/docs: `python docs/write_site.py`, or `make docs`.

Zensical renders the Markdown pages of this folder and of the repository root. Code blocks get a title if they are a
file or output. Each section of reference.md gets an additional page that is generated from the docstrings. The site
works without a network.
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

#: Pages at the root of the repository that are part of the site. They link to the pages here as `docs/…`.
ROOT_PAGES = ("CONTRIBUTING.md", "SECURITY.md")

#: The script that the offline search loads from the network; site/search.js replaces it.
REMOTE_SHIM = "https://unpkg.com/iframe-worker/shim"

#: A longer signature is written with one line per parameter.
MAX_SIGNATURE = 90

#: Parameters that callers do not pass.
HIDDEN_PARAMETERS = ("self", "cls", "control", "client")

_NOTE = re.compile(r"^<!-- (?:(?:file|script): (?P<name>\S+)|prints|faults of: \S+) -->\n```(?P<language>\w+)$", re.M)
_SECTION = re.compile(r"^## (?P<title>.*)$", re.M)
_NAME = re.compile(r"`(\w+)`")


def with_titles(page: str) -> str:
    """Return the text of a page with a title for each block that is a file or output."""

    def title(found: re.Match[str]) -> str:
        return f'```{found["language"]} title="{found["name"] or "Output"}"'

    return _NOTE.sub(title, page)


def sections(reference: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each section of reference.md: its title and the public names in the first column of its tables."""
    parts = _SECTION.split(reference)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        cells = re.findall(r"^\| (`.*?) \|", text, re.M)
        names = [name for cell in cells for name in _NAME.findall(cell)]
        yield title, [name for name in names if callable(public(name))]


def public(name: str) -> Any:
    """Return the object with this name in `arkor` or `arkor.callbacks`. Raise AttributeError if neither has it."""
    return getattr(arkor, name) if name in arkor.__all__ else getattr(callbacks, name)


def signature(name: str, value: Any) -> str:
    """Return the signature of a callable, the type of a property, or the members of an enumeration."""
    if isinstance(value, property):
        return f"{name}: {inspect.signature(value.fget).return_annotation}"
    if isinstance(value, EnumMeta):
        return "\n".join(f"{name}.{member.name}  # {member.value!r}" for member in value)
    try:
        known = inspect.signature(value)
    except ValueError:  # an exception without its own constructor
        return f"{name}(message)"
    parameters = [parameter for parameter in known.parameters.values() if parameter.name not in HIDDEN_PARAMETERS]
    words = [format_parameter(parameter) for parameter in parameters]
    keywords = [index for index, parameter in enumerate(parameters) if parameter.kind is parameter.KEYWORD_ONLY]
    if keywords:
        words.insert(keywords[0], "*")
    returns = known.return_annotation
    end = ")" if returns in (known.empty, None, "None") else f") -> {returns}"
    line = f"{name}({', '.join(words)}{end}"
    return line if len(line) <= MAX_SIGNATURE else f"{name}(\n" + "".join(f"    {word},\n" for word in words) + end


def format_parameter(parameter: inspect.Parameter) -> str:
    """Return a parameter as Python code. The annotations are strings; a default factory is written as `…`."""
    default = "…" if parameter.default is attrs.NOTHING else repr(parameter.default).replace("'", '"')
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
    spaced = " = " if kind else "="
    return f"{stars}{parameter.name}{kind}" + ("" if parameter.default is parameter.empty else spaced + default)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class and its bases, without fields and overridden members."""
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
    """Return True for a method or property, and False for an alias, a field or an enumeration member."""
    return inspect.isfunction(value) or isinstance(value, (classmethod, property, staticmethod))


def reference_entry(name: str) -> str:
    """Return the signature and docstring of a public name and of its members as Markdown."""
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
    """Write the source files of the site into an empty folder."""
    for file in sorted(DOCS.rglob("*")):
        if file.suffix in SUFFIXES:
            copy = folder / file.relative_to(DOCS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    for name in ROOT_PAGES:
        text = (DOCS.parent / name).read_text("utf-8")
        (folder / name).write_text(text.replace("](docs/", "]("), "utf-8")
    for page in folder.rglob("*.md"):
        page.write_text(with_titles(page.read_text("utf-8")), "utf-8")
    write_reference(folder)


def write_reference(folder: Path) -> None:
    """Write a page for each section of reference.md, and a link to it in the section."""
    table = folder / "reference.md"
    text = table.read_text("utf-8")
    (folder / "api").mkdir()
    for title, names in sections(text):
        page = f"api/{slug(title)}.md"
        (folder / page).write_text("\n\n".join([f"# {title}", *map(reference_entry, names)]) + "\n", "utf-8")
        text = text.replace(f"## {title}\n", f"## {title}\n\n[Signatures and docstrings]({page})\n")
    table.write_text(text, "utf-8")


def build(folder: Path = BUILD) -> Path:
    """Build the site in `docs` below the folder. Raise CalledProcessError for a broken link or a missing page."""
    if find_spec("zensical") is None:
        raise SystemExit("Zensical is not installed; it needs Python 3.11 or newer. Run: pip install 'zensical<0.1'")
    shutil.rmtree(folder / "docs-source", ignore_errors=True)
    shutil.rmtree(folder / "docs", ignore_errors=True)
    (folder / "docs-source").mkdir(parents=True)
    write_pages(folder / "docs-source")
    settings = folder / "docs-source.toml"
    shutil.copyfile(DOCS / "site" / "settings.toml", settings)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(settings)]
    subprocess.run(command, check=True, cwd=folder)  # noqa: S603 - a constant command
    use_local_shim(folder / "docs")
    return folder / "docs"


def use_local_shim(site: Path) -> None:
    """Replace the remote script in every page by site/search.js."""
    for page in site.rglob("*.html"):
        above = "../" * (len(page.relative_to(site).parts) - 1)
        page.write_text(page.read_text("utf-8").replace(REMOTE_SHIM, f"{above}site/search.js"), "utf-8")


if __name__ == "__main__":
    sys.stdout.write(f"{build() / 'index.html'}\n")
