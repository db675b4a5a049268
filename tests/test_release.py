"""A release is consistent: version, changelog and tag agree, and the changelog has the form of Keep a Changelog."""

from __future__ import annotations

import re
import subprocess

import arkor
from tests.conftest import PROJECT

CHANGELOG = (PROJECT / "CHANGELOG.md").read_text("utf-8")
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_newest_heading_of_the_changelog_is_the_version() -> None:
    headings = re.findall(r"^## \[(.*?)\] - (unreleased|\d{4}-\d\d-\d\d)$", CHANGELOG, re.M)
    assert len(headings) == len(re.findall(r"^## ", CHANGELOG, re.M))
    assert headings[0][0] == arkor.__version__


def test_the_changelog_has_only_known_sections() -> None:
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.M)) <= SECTIONS


def test_a_release_tag_of_this_commit_is_the_version() -> None:
    tags = subprocess.check_output(["git", "tag", "--points-at", "HEAD"], cwd=PROJECT, text=True).split()
    releases = [tag for tag in tags if re.fullmatch(r"v\d+\.\d+\.\d+", tag)]
    assert releases in ([], [f"v{arkor.__version__}"])
    assert not releases or "unreleased" not in CHANGELOG
