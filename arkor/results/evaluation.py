"""What a run's model answered to the same questions at each checkpoint, and how good that was.

Who asks, and by which measure, is the business of `callbacks/evaluate/evaluate.py`.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class Answer:
    """One question and what came of it: by the tuned model, and beside it by the base model.

    `question` is the user's last message. A text is None where the question was not answered, and the error beside it
    says why; a score is None where there is none to give.
    """

    question: str
    expected: str | None = None
    text: str | None = None
    score: float | None = None
    error: str | None = None
    base_text: str | None = None
    base_score: float | None = None
    base_error: str | None = None


@frozen
class Evaluation:
    """The answers of one checkpoint, or, where `step` is None, of the final adapter; `name` is the question sheet's."""

    name: str
    step: int | None
    answers: tuple[Answer, ...]

    @property
    def score(self) -> float | None:
        """The mean of the scores; None when there are none."""
        return _mean([answer.score for answer in self.answers])

    @property
    def base_score(self) -> float | None:
        """The same of the base model."""
        return _mean([answer.base_score for answer in self.answers])

    def __str__(self) -> str:
        """The scores, and under them each question with both answers."""
        where = "final" if self.step is None else f"step {self.step}"
        head = f"{self.name}, {where}: {_shown(self.score)} (base {_shown(self.base_score)})"
        return "\n".join([head, *map(_lines, self.answers)])


def _mean(scores: list[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _shown(score: float | None) -> str:
    return "no score" if score is None else f"{score:.3g}"


def _lines(answer: Answer) -> str:
    lines = [f"  {_short(answer.question)}"]
    if answer.expected is not None:
        lines.append(f"    expected  {_short(answer.expected)}")
    if answer.base_text is not None or answer.base_error is not None:
        lines.append(f"    base      {_answer_text(answer.base_text, answer.base_error)}")
    lines.append(f"    tuned     {_answer_text(answer.text, answer.error)}")
    return "\n".join(lines)


def _answer_text(text: str | None, error: str | None) -> str:
    return _short(text) if text is not None else f"({error})"


def _short(text: str, width: int = 100) -> str:
    """On one line, cut where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else f"{flat[: width - 1]}…"
