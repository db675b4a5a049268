"""Render the report of a check: as text for a terminal or a file, as HTML for a notebook.

The rows are untrusted: no control character reaches the terminal, and no markup reaches the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

from arkor.formatting import is_printable, one_line

#: How many rows are shown, how many pairs of equal rows are listed, how wide a bar is.
_MAX_ROWS, _MAX_PAIRS, _BAR_WIDTH = 3, 5, 32

_PRE = "white-space:pre-wrap;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px;overflow-wrap:anywhere"
_COUNTS = "text-decoration:underline;background:rgba(22,163,74,.18)"

#: Styles a part of a row that counts for the loss (True) or does not.
Mark = Callable[[str, bool], str]

#: Styles a line by its kind: "heading", "problem" or "good".
Style = Callable[[str, str], str]


def render_text(
    check: Any,
    mark: Mark = lambda text, counts: f"⟦{text}⟧" if counts else text,
    style: Style = lambda text, kind: f"problem: {text}" if kind == "problem" else text,
) -> str:
    """Return the whole report; the defaults mark without colours."""
    return "\n".join(_lines(check, mark, style))


def render_html(check: Any) -> str:
    # The four characters cannot be in the rows: `printable_text` replaces control characters.
    page = escape(
        render_text(
            check, lambda part, counts: f"\1{part}\2" if counts else part, lambda line, _: f"\3{one_line(line)}\4"
        )
    )
    for sign, tag in (("\1", f'<span style="{_COUNTS}">'), ("\2", "</span>"), ("\3", "<b>"), ("\4", "</b>")):
        page = page.replace(sign, tag)
    return f'<div style="{_PRE}">{page}</div>'


def printable_text(text: str) -> str:
    """Replace control characters, except line breaks."""
    return "".join(c if is_printable(c) or c == "\n" else ("\\t" if c == "\t" else "�") for c in text)


def _lines(check: Any, mark: Mark, style: Style) -> Iterator[str]:
    yield style(_verdict(check), "good" if check.ok else "heading")
    for problem in check.problems:
        yield style(printable_text(problem), "problem")
    if (rest := check.problem_count - len(check.problems)) > 0:
        yield f"… and {rest} more"
    sections = {
        "Rows as the model sees them": _rows(check, mark),
        "Lengths": [*_lengths(check.lengths, "training"), *_lengths(check.eval_lengths, "evaluation")],
        "Duplicates": _duplicates(check),
        "Estimate": _estimate(check.estimate),
    }
    for heading, lines in sections.items():
        if lines:
            yield from ("", style(heading, "heading"), *lines)
    if check.notes:
        yield from ("", *(f"Note: {printable_text(note)}" for note in check.notes))


def _verdict(check: Any) -> str:
    if not check.ok:
        count = max(check.problem_count, len(check.problems))
        return f"This run cannot be trained: {count} {'problem' if count == 1 else 'problems'}"
    rows = [f"{check.train_rows} rows to train on"] if check.train_rows is not None else []
    rows += [f"{check.eval_rows} to evaluate on"] if check.eval_rows else []
    return "No problems found; the run can start" + (f": {', '.join(rows)}, read as {check.format}" if rows else "")


def _rows(check: Any, mark: Mark) -> list[str]:
    if not check.preview:
        return []
    lines = [f"{mark('Marked', True)} tokens count for the loss; the others are context."]
    lines += [printable_text(check.learns)] if check.learns else []
    for row in check.preview[:_MAX_ROWS]:
        lines.append(f"row {row.row}: {len(row.tokens)} tokens, {sum(row.counted)} of them count")
        text = "".join(_marked(printable_text(part), counts, mark) for part, counts in row.parts())
        lines += [f"  │ {line}" for line in text.removesuffix("\n").split("\n")]
        lines += [f"  … and {row.more} more tokens"] if row.more else []
    return lines


def _marked(part: str, counts: bool, mark: Mark) -> str:
    """Mark each line by itself, with a visible sign for a line break that counts."""
    *ended, last = part.split("\n")
    sign = "↵" if counts else ""
    return "".join(f"{mark(line + sign, counts)}\n" for line in ended) + (mark(last, counts) if last else "")


def _lengths(lengths: Any, rows: str) -> Iterator[str]:
    if lengths is None:
        return
    yield (
        f"{lengths.rows} {rows} rows of {lengths.shortest} to {lengths.longest} tokens, {lengths.mean:.0f} on average; "
        f"half have at most {lengths.median}, 95 % at most {lengths.p95}; the longest is row {lengths.longest_row}"
    )
    if len(lengths.bins) > 1:
        largest, width = max(count for _, count in lengths.bins), len(str(lengths.longest))
        for upper, count in lengths.bins:
            bar = "█" * max(1, round(_BAR_WIDTH * count / largest)) if count else ""
            yield f"  ≤ {upper:>{width}}  {bar} {count}"
    if not lengths.cut and not lengths.left_out:
        yield f"No row is longer than max_length ({lengths.max_length})."
        return
    if lengths.cut:
        lost = f"{lengths.lost} of {lengths.counted} tokens that count" if lengths.lost else "no tokens that count"
        yield f"{lengths.cut} rows are longer than max_length ({lengths.max_length}) and are cut, which loses {lost}."
    if lengths.left_out:
        within = " within max_length" if lengths.cut else ""
        yield f"{lengths.left_out} {rows} rows are left out: none of their tokens{within} count."


def _duplicates(check: Any) -> list[str]:
    found = check.duplicates
    if found is None:
        return []
    if not found.within and not found.between:
        return ["None."]
    lines = [f"{found.within} of the training rows repeat an earlier one{_pairs(found.within_examples)}."]
    if check.eval_rows:
        lines.append(f"{found.between} of the evaluation rows are also training rows{_pairs(found.between_examples)}.")
    return lines


def _pairs(pairs: Sequence[tuple[int, int]]) -> str:
    listed = ", ".join(f"{again} = {first}" for again, first in pairs[:_MAX_PAIRS])
    return f" (rows {listed}{', …' if len(pairs) > _MAX_PAIRS else ''})" if listed else ""


def _estimate(estimate: Any) -> list[str]:
    if estimate is None:
        return []
    lines = [f"{estimate}."]
    if estimate.timed_steps:
        lines.append(f"Measured on {estimate.timed_steps} of its steps, on {estimate.device}.")
    if estimate.preparing_seconds:
        lines.append(f"Preparation before the first step: about {estimate.preparing_seconds:.0f} s.")
    if estimate.busy:
        lines.append("Other programs were computing at the same time; the run alone will be faster.")
    return lines
