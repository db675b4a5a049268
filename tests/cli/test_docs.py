"""`arkor docs`: the documentation that is installed with the package."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Run


def test_the_documentation_is_where_it_is_printed(run_anew: Run) -> None:
    done = run_anew("docs")
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path(done.stdout.strip())
    assert (folder / "cli.md").read_text("utf-8").startswith("# Command line")
