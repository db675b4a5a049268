"""Draw run.svg, an animated recording of a real run: its terminal output, progress and training loss.

    arkor init triage && cd triage
    script -qec "stty cols 100; arkor start" /tmp/run.typescript
    python docs/images/draw_run.py /tmp/run.typescript ~/.arkor/runs/ID

The first command line argument is a typescript, the second a run folder. The parts that the picture shows are saved
as `run.txt` (terminal output) and `run.jsonl` (event log); without arguments the picture is drawn from these two files.
The animation is CSS: it loops after `SECONDS`, and a reader who prefers reduced motion sees the last frame.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

COLUMNS, CHAR, LINE, PADDING, BAR, CHART = 100, 7.8, 19.0, 24, 40, 150
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
INK, DIM, BLUE, GREEN, RED, PAPER = "#d6dbe3", "#7d8793", "#79b8ff", "#7ee2a8", "#f4a7a0", "#12161d"

#: Line patterns and their colours; the first pattern that matches is used.
COLOURS = (
    (r"^\$ ", INK),
    (r"^triage.*\d+%\|", BLUE),
    (r"^tuned|^  \w+ +right", GREEN),
    (r"^base|^  \w+ +wrong", RED),
    (r"^step \d+:", INK),
    (r"", DIM),
)

#: The share of the steps that are done in the progress bar saved to run.txt.
SHARE = 0.85

#: Which paragraphs are shown from the end of the output; the last one is the hint how to chat.
LAST = slice(-4, -1)

#: The length of the animation, and when training starts and ends in it, in seconds.
SECONDS, FIRST_STEP, LAST_STEP = 20.0, 2.0, 11.0

#: The number of optimizer steps between two frames of the progress bar, and the width of the bar in characters.
FRAME_STEPS, BAR_WIDTH = 3, 21

#: Seconds between two lines of the results.
LINE_DELAY = 0.35


def screen(typescript: str) -> list[str]:
    """Return the lines on the terminal after this output, in which nothing moves the cursor up."""
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
    """Return the screen at the moment when `SHARE` of the steps are done."""
    for bar in re.finditer(r"(\d+)/(\d+) steps[^\r\n]*", typescript):
        if int(bar[1]) >= SHARE * int(bar[2]):
            return screen(typescript[: bar.end()])
    raise SystemExit("run.typescript has no progress bar")


def at_the_end(typescript: str) -> list[str]:
    """Return the last paragraphs of the output."""
    printed = "\n".join(line.rstrip() for line in screen(typescript)).strip()
    return "\n\n".join(printed.split("\n\n")[LAST]).split("\n")


def save_recording(typescript: Path, run: Path) -> None:
    """Write run.txt and run.jsonl, without the first and last line that `script` adds."""
    lines = typescript.read_bytes().decode().splitlines(keepends=True)
    printed = "".join(line for line in lines if not line.startswith("Script "))
    shown = [*in_mid_run(printed), "⋮", *at_the_end(printed)]
    (HERE / "run.txt").write_text("\n".join(shown) + "\n", "utf-8")
    (HERE / "run.jsonl").write_bytes((run / "events.jsonl").read_bytes())


class Picture:
    """The elements of the SVG and the keyframes that animate them."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.keyframes: list[str] = []

    def animate(self, start: float, end: float | None = None) -> str:
        """Return the `style` attribute of an element that is visible from `start` to `end` seconds."""
        name = f"k{len(self.keyframes)}"
        hidden = f"{100 * end / SECONDS:.2f}%{{opacity:0}}" if end is not None else ""
        self.keyframes.append(f"@keyframes {name}{{0%{{opacity:0}}{100 * start / SECONDS:.2f}%{{opacity:1}}{hidden}}}")
        return f'style="animation-name:{name}"' + (' opacity="0"' if end is not None else "")

    def text(self, line: str, row: float, start: float, end: float | None = None) -> None:
        """Add a line of text; one wider than the terminal is continued in the next row."""
        colour = next(colour for pattern, colour in COLOURS if re.search(pattern, line))
        style = self.animate(start, end)
        for number, part in enumerate(folded(line)):
            if part.strip():
                self.elements.append(
                    f'<text {style} x="{PADDING}" y="{row + LINE * number:.1f}" fill="{colour}" '
                    f'textLength="{len(part) * CHAR:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve">'
                    f"{escape(part)}</text>"
                )

    def svg(self, width: float, height: float) -> str:
        """Return the whole document."""
        css = (
            f"text{{animation:{SECONDS:g}s step-end infinite}}#cover{{animation:cover {SECONDS:g}s linear infinite}}"
            + "".join(self.keyframes)
            + "@media (prefers-reduced-motion:reduce){*{animation:none!important}#cover{display:none}}"
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}" '
            f'font-size="13" role="img" aria-label="A recording of arkor start in a terminal">\n<style>{css}</style>\n'
            f'<rect width="100%" height="100%" rx="10" fill="{PAPER}"/>\n' + "\n".join(self.elements) + "\n</svg>\n"
        )


def folded(line: str) -> list[str]:
    """Return the rows that a line takes on the terminal."""
    return [line[at : at + COLUMNS] for at in range(0, len(line) or 1, COLUMNS)]


def progress_line(step: int, total: int, loss: float) -> str:
    """Return the line of the progress bar for a step, without the times."""
    filled = BAR_WIDTH * step / total
    bar = "█" * int(filled) + ("▌" if filled % 1 >= 0.5 else "")
    return f"triage {100 * step // total:3}%|{bar:{BAR_WIDTH}}| {step}/{total} steps, loss {loss:.4f}"


def draw(output: list[str], events: list[dict[str, Any]]) -> str:
    """Return the SVG of a run. Output lines of a checkpoint and frames of the bar appear in the log's rhythm."""
    losses = {event["step"]: event["loss"] for event in events if event.get("loss") is not None}
    saved = [event["step"] for event in events if event["type"] == "checkpoint.saved"]
    total = max(losses)
    when = seconds_by_step(events)
    picture, row, start = Picture(), BAR + LINE, 0.3
    results_at = LAST_STEP + 0.5
    picture.elements += [f'<circle cx="{PADDING + 18 * n}" cy="20" r="5.5" fill="#3a424d"/>' for n in range(3)]
    for line in ["$ arkor start", *output]:
        if found := re.match(r"step (\d+):", line):
            picture.text(line, row, when[int(found[1])])
        elif re.search(r"\d+/\d+ steps", line):
            frames = [*range(1, total, FRAME_STEPS), total]
            for step, after in zip(frames, [*frames[1:], None], strict=True):
                bar = progress_line(step, total, losses[step])
                picture.text(bar, row, when[step], when[after] if after else None)
            start = results_at
        elif line:
            picture.text(line, row, start)
            start += LINE_DELAY
        row += LINE * len(folded(line))
    top = row + LINE / 2
    draw_chart(picture, top, losses, saved, when)
    return picture.svg(COLUMNS * CHAR + 2 * PADDING, top + CHART + 44)


def seconds_by_step(events: list[dict[str, Any]]) -> dict[int, float]:
    """Return when each step is logged, scaled to the time from `FIRST_STEP` to `LAST_STEP`."""
    logged = {event["step"]: event["timestamp"] for event in events if event["type"] == "training.log"}
    times = {step: datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() for step, text in logged.items()}
    first, last = min(times.values()), max(times.values())
    return {step: FIRST_STEP + (LAST_STEP - FIRST_STEP) * (t - first) / (last - first) for step, t in times.items()}


def draw_chart(
    picture: Picture, top: float, losses: dict[int, float], saved: list[int], when: dict[int, float]
) -> None:
    """Add the loss by step with a dot for each checkpoint, under a cover that moves right with the steps."""
    last, highest, width = max(losses), max(losses.values()), COLUMNS * CHAR

    def point(step: int) -> tuple[float, float]:
        return PADDING + width * step / last, top + CHART - CHART * losses[step] / highest

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(point, losses))
    moves = "".join(
        f"{100 * when[step] / SECONDS:.2f}%{{transform:translateX({width * step / last:.0f}px)}}" for step in losses
    )
    end = f"100%{{transform:translateX({width + 12:.0f}px)}}"
    picture.keyframes.append(f"@keyframes cover{{0%{{transform:none}}{moves}{end}}}")
    picture.elements += [
        f'<polyline points="{path}" fill="none" stroke="{BLUE}" stroke-width="2" stroke-linejoin="round"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{GREEN}"/>' for x, y in map(point, saved)),
        f'<rect id="cover" x="{PADDING + 2}" y="{top - 6:.1f}" width="{width + 6}" height="{CHART + 12}" '
        f'fill="{PAPER}"/>',
        f'<path d="M{PADDING} {top + CHART}h{width}" stroke="{DIM}" stroke-width="0.5"/>',
    ]
    ends = f"{losses[min(losses)]:.2f} at the first step, {losses[last]:.2f} at the last"
    picture.text(f"training loss: {ends}; dots are checkpoints", top + CHART + 22, LAST_STEP)


if __name__ == "__main__":
    if sys.argv[1:]:
        save_recording(*map(Path, sys.argv[1:]))
    log = [json.loads(line) for line in (HERE / "run.jsonl").read_text("utf-8").splitlines()]
    (HERE / "run.svg").write_text(draw((HERE / "run.txt").read_text("utf-8").splitlines(), log), "utf-8")
