"""What was found of a run before it was started, as a report: text for a terminal or a file, HTML for a notebook.

Rows come from strangers: nothing in them can move a cursor or become a tag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

from arkor.formatting import format_repr, is_printable, one_line

#: How what counts for the loss is marked in plain text.
OPEN_MARK, CLOSE_MARK = "⟦", "⟧"

#: How many rows are shown, how many pairs of the same rows are named, how wide a bar is.
_MAX_ROWS, _MAX_PAIRS, _BAR_WIDTH = 3, 5, 32

_PRE = "white-space:pre-wrap;font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px;overflow-wrap:anywhere"
_COUNTS = "text-decoration:underline;background:rgba(22,163,74,.18)"

#: Shows a stretch of a row, which counts (True) or does not.
Mark = Callable[[str, bool], str]

#: Shows a heading or a sentence; the words are "heading", "problem", "good" and "plain".
Style = Callable[[str, str], str]


def plain_mark(text: str, counts: bool) -> str:
    """The text, in brackets if it counts."""
    return f"{OPEN_MARK}{text}{CLOSE_MARK}" if counts else text


def plain_style(text: str, kind: str) -> str:
    """Without colours, a problem is told by a word."""
    return f"problem: {text}" if kind == "problem" else text


def repr_line(check: Any) -> str:
    """`"Check(ok=True, train_rows=407, estimate='60 steps of …')"`."""
    estimate = None if check.estimate is None else str(check.estimate)
    facts = {"train_rows": check.train_rows, "eval_rows": check.eval_rows, "estimate": estimate}
    return format_repr("Check", ok=check.ok, problems=check.problem_count or None, **facts)


def render_text(check: Any, mark: Mark = plain_mark, style: Style = plain_style) -> str:
    """The whole report."""
    return "\n".join(_lines(check, mark, style))


def _lines(check: Any, mark: Mark, style: Style) -> Iterator[str]:
    yield style(_verdict(check), "good" if check.ok else "heading")
    for problem in check.problems:
        yield style(printable_text(problem), "problem")
    if (rest := check.problem_count - len(check.problems)) > 0:
        yield f"… and {rest} more"
    sections = (_rows(check, mark), _lengths(check), _duplicates(check), _estimate(check))
    for heading, lines in zip(
        ("Rows as the model sees them", "Lengths", "Duplicates", "Estimate"), sections, strict=True
    ):
        if lines:
            yield ""
            yield style(heading, "heading")
            yield from lines
    if check.notes:
        yield ""
        yield from (f"Note: {printable_text(note)}" for note in check.notes)


def _verdict(check: Any) -> str:
    rows = [f"{check.train_rows} rows to train on"] if check.train_rows is not None else []
    rows += [f"{check.eval_rows} to evaluate on"] if check.eval_rows else []
    row_note = f": {', '.join(rows)}, read as {check.format}" if rows else ""
    if check.ok:
        return f"Nothing keeps this run from being trained{row_note}"
    count = max(check.problem_count, len(check.problems))
    return f"This run cannot be trained: {count} {'problem' if count == 1 else 'problems'}"


def _rows(check: Any, mark: Mark) -> list[str]:
    if not check.preview:
        return []
    lines = [f"{mark('This', True)} is what counts for the loss, the rest is what comes before it."]
    for row in check.preview[:_MAX_ROWS]:
        counted = sum(row.counted)
        lines.append(f"row {row.row}: {len(row.tokens)} tokens, {counted} of them count")
        shown = "".join(_marked(printable_text(text), counts, mark) for text, counts in row.parts())
        lines += [f"  │ {part}" for part in shown.removesuffix("\n").split("\n")]
        lines += [f"  … and {row.more} tokens more"] if row.more else []
    return lines


def _marked(part: str, counts: bool, mark: Mark) -> str:
    """Line by line; a line break that counts is to be seen."""
    *ended, last = part.split("\n")
    sign = "↵" if counts else ""
    whole = "".join(f"{mark(text + sign, counts)}\n" for text in ended)
    return whole + (mark(last, counts) if last else "")


def _lengths(check: Any) -> list[str]:
    found = []
    for what, lengths in (("training", check.lengths), ("evaluation", check.eval_lengths)):
        if lengths is not None:
            found += [*_distribution(lengths, what), *_cut(lengths, what)]
    return found


def _distribution(lengths: Any, what: str) -> list[str]:
    words = (
        f"{lengths.rows} {what} rows of {lengths.shortest} to {lengths.longest} tokens, {lengths.mean:.0f} on average; "
        f"half have at most {lengths.median}, 95 % at most {lengths.p95}; the longest is row {lengths.longest_row}"
    )
    largest = max((count for _, count in lengths.bins), default=0)
    width = len(str(lengths.longest))
    bars = [
        f"  ≤ {upper:>{width}}  {'█' * max(1, round(_BAR_WIDTH * count / largest)) if count else ''} {count}"
        for upper, count in lengths.bins
    ]
    return [words, *(bars if len(bars) > 1 else [])]


def _cut(lengths: Any, what: str) -> list[str]:
    if not lengths.cut and not lengths.left_out:
        return [f"None is longer than max_length, {lengths.max_length}."]
    lost = f"{lengths.lost} of {lengths.counted} tokens that count are lost" if lengths.lost else "nothing that counts"
    words = [f"{lengths.cut} are longer than max_length, {lengths.max_length}, and are cut: {lost}."]
    if lengths.left_out:
        words.append(f"{lengths.left_out} {what} rows are left out: nothing within max_length is to be learnt.")
    return words


def _duplicates(check: Any) -> list[str]:
    found = check.duplicates
    if found is None:
        return []
    words = [f"{found.within} of the training rows repeat an earlier one{_pairs(found.within_examples, '=')}."]
    if check.eval_rows:
        words.append(
            f"{found.between} of the evaluation rows are in the training data too{_pairs(found.between_examples, '=')}."
        )
    return words if found.within or found.between else ["None."]


def _pairs(pairs: Sequence[tuple[int, int]], sign: str) -> str:
    named = ", ".join(f"{again} {sign} {first}" for again, first in pairs[:_MAX_PAIRS])
    return f" (rows {named}{', …' if len(pairs) > _MAX_PAIRS else ''})" if named else ""


def _estimate(check: Any) -> list[str]:
    found = check.estimate
    if found is None:
        return []
    words = [f"{found}."]
    if found.timed_steps:
        words.append(f"Judged by {found.timed_steps} of its steps on {found.device}.")
    if found.preparing_seconds:
        words.append(f"Before the first step: about {found.preparing_seconds:.0f} s.")
    if found.busy:
        words.append("Something else was computed there at the same time: alone the run will be faster.")
    return words


def printable_text(text: str) -> str:
    """What a terminal cannot be steered with; line breaks stay."""
    return "".join(c if is_printable(c) or c == "\n" else ("\\t" if c == "\t" else "�") for c in text)


def render_html(check: Any) -> str:
    """The report for a notebook's cell."""

    def mark(part: str, counts: bool) -> str:
        return f"\1{part}\2" if counts else part

    def style(part: str, kind: str) -> str:
        return f"\3{one_line(part)}\4" if kind != "plain" else part

    page = escape(render_text(check, mark, style))
    for sign, tag in (("\1", f'<span style="{_COUNTS}">'), ("\2", "</span>"), ("\3", "<b>"), ("\4", "</b>")):
        page = page.replace(sign, tag)  # `printable_text` has left none of them in what strangers wrote
    return f'<div style="{_PRE}">{page}</div>'
