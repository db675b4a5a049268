"""The documentation site: it builds without warnings, loads nothing from the network, and its search works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import write_site
from docs.write_site import DOCS
from tests import browsers

#: Run in a separate process, because a process can have only one Playwright driver and Studio's tests use it.
SEARCH = """
import json, re, sys
from playwright.sync_api import sync_playwright

with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=sys.argv[1], args=["--no-sandbox", "--disable-gpu"])
    tab, urls = browser.new_page(), []
    tab.on("request", lambda request: urls.append(request.url))
    tab.goto(sys.argv[2])
    tab.keyboard.press("/")
    tab.locator("input[aria-label=Search]").fill("min_delta")
    tab.get_by_text(re.compile("^[1-9][0-9]* results?$")).wait_for(state="visible")
    json.dump([url for url in urls if not url.startswith(("file:", "blob:", "data:"))], sys.stdout)
    browser.close()
"""


pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Zensical needs Python 3.11")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site.build(tmp_path_factory.mktemp("site"))


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    pages = {page: page.read_text("utf-8") for page in site.rglob("*.html")}
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(https?:|//)|<link[^>]*\shref=["']?(https?:|//)"""
    )
    assert not {str(page.relative_to(site)) for page, text in pages.items() if loaded.search(text)}
    assert "ReconnectPolicy(" in re.sub(r"<[^>]*>", "", pages[site / "api" / "a-run.html"])
    for page, text in pages.items():
        shim = re.search(r'<script src="([^"]*site/search.js)"', text)
        assert shim is not None, f"{page} does not load the local search script"
        assert page.name == "404.html" or (page.parent / shim[1]).exists()
    assert not re.search(r"@import|url\(['\"]?(https?:|//)", "".join(f.read_text("utf-8") for f in site.rglob("*.css")))


def test_the_menu_contains_every_page() -> None:
    menu = re.findall(r'"([\w/-]+\.md)"', (DOCS / "site" / "settings.toml").read_text("utf-8"))
    assert len(menu) == len(set(menu))
    sections = write_site.sections((DOCS / "reference.md").read_text("utf-8"))
    written = {f"api/{write_site.slug(title)}.md" for title, _ in sections}
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert set(menu) == pages | written | set(write_site.ROOT_PAGES)


def test_a_broken_link_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    for name in write_site.ROOT_PAGES:
        shutil.copyfile(DOCS.parent / name, tmp_path / name)
    (tmp_path / "docs" / "data.md").write_text("# Data\n\n[here](trainer.md#no-such-heading)\n", "utf-8")
    monkeypatch.setattr(write_site, "DOCS", tmp_path / "docs")
    with pytest.raises(subprocess.CalledProcessError):
        write_site.build(tmp_path / "build")


@pytest.mark.slow
def test_the_search_works_in_pages_opened_from_a_file(site: Path, request: pytest.FixtureRequest) -> None:
    page = (site / "api" / "a-run.html").as_uri()
    command = [sys.executable, "-c", SEARCH, browsers.require(request.config), page]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
