"""Draws run.svg from what a real run left: the screen as it stood in mid-run, the end of it, and the loss between.

    arkor init triage && cd triage
    script -qec "stty cols 100; arkor start" /tmp/run.typescript
    python docs/images/draw_run.py /tmp/run.typescript ~/.arkor/runs/ID

What is shown of them is kept beside the picture, as `run.txt` and `run.jsonl`; without arguments these are drawn.
"""

from __future__ import annotations

import json
import re
import sys
from html import escape
from pathlib import Path

HERE = Path(__file__).parent

COLUMNS, CHAR, LINE, PADDING, BAR, CHART = 100, 7.8, 19.0, 24, 40, 150
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
INK, DIM, BLUE, GREEN, RED, PAPER = "#d6dbe3", "#7d8793", "#79b8ff", "#7ee2a8", "#f4a7a0", "#12161d"

#: What is coloured, and how; the first that fits a line is taken.
COLOURS = (
    (r"^\$ ", INK),
    (r"^triage.*\d+%\|", BLUE),
    (r"^tuned|^  \w+ +right", GREEN),
    (r"^base|^  \w+ +wrong", RED),
    (r"^step \d+:", INK),
    (r"", DIM),
)

#: How much of the run is behind the bar of the first screen.
SHARE = 0.85

#: How many paragraphs of the end are shown.
LAST = 4


def screen(typescript: str) -> list[str]:
    """The lines that stand on the terminal after these characters; nothing moves the cursor up."""
    lines = [""]
    for part in re.split(r"(\r\x1b\[K|\r?\n)", typescript):
        if part == "\r\x1b[K":
            lines[-1] = ""
        elif part.endswith("\n"):
            lines.append("")
        else:
            lines[-1] += part
    return lines


def in_mid_run(typescript: str) -> list[str]:
    """The screen when `SHARE` of the steps were done."""
    for bar in re.finditer(r"(\d+)/(\d+) steps[^\r\n]*", typescript):
        if int(bar[1]) >= SHARE * int(bar[2]):
            return screen(typescript[: bar.end()])
    raise SystemExit("run.typescript has no progress bar")


def at_the_end(typescript: str) -> list[str]:
    """The last paragraphs that were printed."""
    printed = "\n".join(line.rstrip() for line in screen(typescript)).strip()
    return "\n\n".join(printed.split("\n\n")[-LAST:]).split("\n")


def folded(lines: list[str]) -> list[str]:
    """As a terminal folds them."""
    return [line[at : at + COLUMNS] for line in lines for at in range(0, len(line) or 1, COLUMNS)]


def text(line: str, row: float, colour: str) -> str:
    if not line.strip():
        return ""
    width = f'textLength="{len(line) * CHAR:.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{PADDING}" y="{row:.1f}" fill="{colour}" {width} xml:space="preserve">{escape(line)}</text>'


def colour_of(line: str) -> str:
    return next(colour for pattern, colour in COLOURS if re.search(pattern, line))


def paragraphs(lines: list[str]) -> list[tuple[str, str]]:
    """Every folded line with the colour of the whole one."""
    return [(part, colour_of(line)) for line in lines for part in folded([line])]


def chart(top: float, events: list[dict]) -> list[str]:
    """The loss by step, a dot at each checkpoint."""
    losses = {event["step"]: event["loss"] for event in events if event.get("loss") is not None}
    saved = [event["step"] for event in events if event["type"] == "checkpoint.saved"]
    last, highest, width = max(losses), max(losses.values()), COLUMNS * CHAR

    def point(step: int) -> tuple[float, float]:
        return PADDING + width * step / last, top + CHART - CHART * losses[step] / highest

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(point, losses))
    floor = f'<path d="M{PADDING} {top + CHART}h{width}" stroke="{DIM}" stroke-width="0.5"/>'
    line = f'<polyline points="{path}" fill="none" stroke="{BLUE}" stroke-width="2" stroke-linejoin="round"/>'
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{GREEN}"/>' for x, y in map(point, saved)]
    ends = f"loss {losses[min(losses)]:.2f} at the first step, {losses[last]:.2f} at the last; dots are checkpoints"
    return [floor, line, *dots, text(ends, top + CHART + 22, DIM)]


def picture(shown: list[str], events: list[dict]) -> str:
    lines = paragraphs(["$ arkor start", *shown])
    rows = [text(line, BAR + LINE * (number + 1), colour) for number, (line, colour) in enumerate(lines)]
    top = BAR + LINE * (len(lines) + 1.5)
    width, height = COLUMNS * CHAR + 2 * PADDING, top + CHART + 44
    buttons = [f'<circle cx="{PADDING + 18 * n}" cy="20" r="5.5" fill="#3a424d"/>' for n in range(3)]
    body = "\n".join(filter(None, [*buttons, *rows, *chart(top, events)]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}" '
        f'font-size="13" role="img" aria-label="A run of arkor start in a terminal">\n'
        f'<rect width="100%" height="100%" rx="10" fill="{PAPER}"/>\n{body}\n</svg>\n'
    )


def keep(typescript: Path, run: Path) -> None:
    """Write down what the picture is drawn from; `script`'s own first and last line stay behind."""
    lines = typescript.read_bytes().decode().splitlines(keepends=True)
    printed = "".join(line for line in lines if not line.startswith("Script "))
    shown = [*in_mid_run(printed), "⋮", *at_the_end(printed)]
    (HERE / "run.txt").write_text("\n".join(shown) + "\n", "utf-8")
    (HERE / "run.jsonl").write_bytes((run / "events.jsonl").read_bytes())


if __name__ == "__main__":
    if sys.argv[1:]:
        keep(*map(Path, sys.argv[1:]))
    log = [json.loads(line) for line in (HERE / "run.jsonl").read_text("utf-8").splitlines()]
    (HERE / "run.svg").write_text(picture((HERE / "run.txt").read_text("utf-8").splitlines(), log), "utf-8")
