"""Every field that rows are read from is in the table of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from arkor.protocol import row_formats, row_messages


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    table = page.partition("## Fields")[2].partition("<a id")[0]
    documented = set(re.findall(r"`(\w+)`", table))
    read = {*row_messages.FIELDS, *row_formats.MEDIA, *row_formats.OTHER_TRAINING}
    read |= {name for fields, _ in row_formats.ROW_FORMATS.values() for name in fields}
    read |= {name for names in row_formats.OPTIONAL_FIELDS.values() for name in names}
    assert read - documented == {"video", "image"}  # as `images`, `videos`
