"""`python -m arkor`: the command `arkor`."""

from __future__ import annotations

from arkor.cli.main import main

if __name__ == "__main__":
    main()
