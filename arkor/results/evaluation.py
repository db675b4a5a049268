"""The answers and scores of a checkpoint, produced by `callbacks/evaluate/evaluate.py`."""

from __future__ import annotations

from attrs import frozen

from arkor.formatting import one_line


@frozen
class Answer:
    """One question with the answers of the tuned model and of the base model.

    `question` is the last message of the user. Without a text, `error` has the reason; `score`
    needs an expected answer.
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
    """The answers of the checkpoint at `step`, or of the final adapter; `name` is the sheet's."""

    name: str
    step: int | None
    answers: tuple[Answer, ...]

    @property
    def score(self) -> float | None:
        return _mean([answer.score for answer in self.answers])

    @property
    def base_score(self) -> float | None:
        return _mean([answer.base_score for answer in self.answers])

    @property
    def summary(self) -> str:
        """`"support, step 20: 0.8 (base 0.4)"`."""
        where = "final" if self.step is None else f"step {self.step}"
        return f"{self.name}, {where}: {_format_score(self.score)} (base {_format_score(self.base_score)})"

    def __str__(self) -> str:
        lines = [self.summary]
        for answer in self.answers:
            lines.append(f"  {one_line(answer.question, 100)}")
            if answer.expected is not None:
                lines.append(f"    expected  {one_line(answer.expected, 100)}")
            if answer.base_text is not None or answer.base_error is not None:
                lines.append(f"    base      {_text_or_error(answer.base_text, answer.base_error)}")
            lines.append(f"    tuned     {_text_or_error(answer.text, answer.error)}")
        return "\n".join(lines)


def _mean(scores: list[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _format_score(score: float | None) -> str:
    return "no score" if score is None else f"{score:.3g}"


def _text_or_error(text: str | None, error: str | None) -> str:
    return one_line(text, 100) if text is not None else f"({error})"
