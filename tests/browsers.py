"""Chromium for the tests that look at pages: where it is, how it is started, and what happens without it."""

from __future__ import annotations

import shutil
import sys

import pytest

#: The headless shell comes first: it draws no window, and needs about 0.6 of the whole browser's processor time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

#: The reason by which the summary recognises the tests that were skipped for want of a browser.
MISSING = "no Chromium was found"


def require(config: pytest.Config) -> str:
    """Return Chromium's path; without one, skip the test, or fail it under `--require-browser`."""
    if CHROMIUM is None:
        (pytest.fail if config.getoption("--require-browser") else pytest.skip)(MISSING)
    return CHROMIUM


def summary(skipped: int) -> str:
    """The line that says how many tests were skipped and which command brings them."""
    install = "brew install --cask chromium" if sys.platform == "darwin" else "apt-get install chromium-headless-shell"
    return f"{skipped} tests that need a browser were skipped: {MISSING}. To run them: {install}"
