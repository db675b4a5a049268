"""`Evaluate`: ask the model of each checkpoint, and the base model, the same questions."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import attrs
import msgspec.json
from attrs import frozen

from arkor.callbacks.contexts import CheckpointContext, CompletedContext, FinishedContext, Infer, StartedContext
from arkor.callbacks.evaluate.questions import Question, parse_questions
from arkor.errors import ArkorError, CloudApiError, InvalidConfig, TrainerAborted
from arkor.formatting import quote
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.jobs import Artifact, TrainingJob
from arkor.protocol.validation import Integer, boolean, is_finite, signature_mismatch, text
from arkor.results.evaluation import Answer, Evaluation
from arkor.results.training_result import TrainingResult

#: `(answer, expected)` → a score; `expected` may be None.
Metric = Callable[[str, "str | None"], float]

#: The parameters of `infer` that `Evaluate` sets itself, and the accepted ones.
_RESERVED_OPTIONS = {"self", "messages", "stream", "tools", "n", "abort_signal"}
_OPTIONS = [name for name in inspect.signature(Infer.__call__).parameters if name not in _RESERVED_OPTIONS]

_POLL_SECONDS = 0.05  # the interval between two looks at the abort signal


@frozen
class Prediction:
    """The answer of one model to one question, or the error."""

    text: str | None = None
    score: float | None = None
    error: str | None = None


class Evaluate:
    """Ask `questions` at every `every`-th checkpoint and at the end, and score the answers.

    `questions` are prompts, messages or rows (where the last message of the assistant is the
    expected answer), a dict `{prompt: expected}`, or a file of rows (`FileDataset`, `Path`).
    `metric` is `"exact_match"`, `"json_valid"` or a function of `(answer, expected)` that returns a
    number; the default is `"exact_match"` if every question has an expected answer.

    With `base`, the base model is asked once, for comparison in `result.evaluations`. `concurrency`
    requests run at a time, and an evaluation may take `timeout` seconds; failed and late answers
    are left out. `tell(evaluation)` is called after each evaluation. `options` are as in
    `ctx.infer`; by default answers are greedy. Raise `InvalidConfig` for an invalid argument.
    """

    def __init__(
        self,
        questions: Any,
        metric: str | Metric | None = None,
        every: int = 1,
        *,
        name: str = "evaluation",
        base: bool = True,
        concurrency: int = 2,
        timeout: float = 600.0,
        tell: Callable[[Evaluation], Any] | None = None,
        **options: Any,
    ) -> None:
        self.questions = parse_questions(questions)
        self._metric = _metric_for(metric, self.questions)
        Integer(1)("Evaluate.every", every)
        Integer(1)("Evaluate.concurrency", concurrency)
        if not is_finite(timeout) or not 0 < timeout < threading.TIMEOUT_MAX:
            raise InvalidConfig("Evaluate.timeout", f"must be seconds, above 0, not {timeout!r}")
        text("Evaluate.name", name)
        boolean("Evaluate.base", base)
        if tell is not None and (not callable(tell) or signature_mismatch(tell, 1)):
            raise InvalidConfig("Evaluate.tell", f"must be a function of one evaluation, like print, not {quote(tell)}")
        _check_options(options)
        self.name = name
        self._every = every
        self._base = base
        self._concurrency = concurrency
        self._timeout = timeout
        self._on_evaluation = tell
        self._options = {"temperature": None if "top_p" in options else 0, **options}
        self._begin(None)

    def __repr__(self) -> str:
        return f"Evaluate(<{len(self.questions)} questions>, name={self.name!r})"

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The evaluations of the current run so far."""
        return tuple(self._evaluations)

    def on_started(self, ctx: StartedContext) -> None:
        """Discard earlier evaluations of this run."""
        self._begin(ctx.job.id)

    def on_checkpoint(self, ctx: CheckpointContext) -> None:
        """Evaluate each checkpoint that `every` selects."""
        self._begin_if_new(ctx.job)
        self._seen += 1
        if self._seen % self._every == 0:
            self._evaluate(ctx.step, ctx.infer, ctx.job)

    def on_completed(self, ctx: CompletedContext) -> None:
        """Evaluate the final adapter, unless the last checkpoint has the same weights."""
        self._begin_if_new(ctx.job)
        final_steps = [item.step for item in ctx.artifacts if isinstance(item, Artifact) and item.kind == "final"]
        last = next(reversed(self._evaluations), None)
        if last is not None and last.step in final_steps and not any(answer.error for answer in last.answers):
            self._add_evaluation(attrs.evolve(last, step=None))
        elif ctx.infer is not None:
            self._evaluate(None, ctx.infer, ctx.job)

    def on_finished(self, ctx: FinishedContext) -> TrainingResult | None:
        """Add the evaluations to the result."""
        if ctx.result is None or ctx.job.id != self._job_id:
            return None
        return attrs.evolve(ctx.result, evaluations=(*ctx.result.evaluations, *self._evaluations))

    def _begin(self, job_id: str | None) -> None:
        self._job_id = job_id
        self._seen = 0
        self._evaluations: list[Evaluation] = []
        self._base_predictions: list[Prediction] | None = None

    def _begin_if_new(self, job: TrainingJob) -> None:
        if job.id != self._job_id:
            self._begin(job.id)

    def _evaluate(self, step: int | None, infer: Infer, job: TrainingJob) -> None:
        if self._base and self._base_predictions is None:
            self._base_predictions = self._ask_all(attrs.evolve(infer, adapter=None, base_model=job.config.model))
        base_predictions = self._base_predictions or [Prediction() for _ in self.questions]
        predictions = zip(self.questions, self._ask_all(infer), base_predictions, strict=True)
        answers = [
            Answer(asked.text, asked.expected, own.text, own.score, own.error, base.text, base.score, base.error)
            for asked, own, base in predictions
        ]
        self._add_evaluation(Evaluation(self.name, step, tuple(answers)))

    def _add_evaluation(self, evaluation: Evaluation) -> None:
        self._evaluations.append(evaluation)
        if self._on_evaluation is not None:
            self._on_evaluation(evaluation)

    def _ask_all(self, infer: Infer) -> list[Prediction]:
        """Ask every question until the timeout or the abort signal; never raise an ArkorError."""
        run = EvaluationRun(infer, self._metric, self._options)
        deadline, abort = time.monotonic() + self._timeout, infer.abort_signal
        with ThreadPoolExecutor(self._concurrency, "arkor-evaluate") as pool:
            futures = [pool.submit(run.ask, question) for question in self.questions]
            try:
                while (remaining := deadline - time.monotonic()) > 0 and not (abort is not None and abort.is_set()):
                    if not wait(futures, min(remaining, _POLL_SECONDS)).not_done:
                        break
            finally:
                run.stopped.set()
        return [future.result() for future in futures]


class EvaluationRun:
    """The requests to one model; `stopped` cancels those without an answer."""

    def __init__(self, infer: Infer, metric: Metric | None, options: Mapping[str, Any]) -> None:
        self.stopped = threading.Event()
        self._infer = infer
        self._metric = metric
        self._options = options
        self._not_found: str | None = None

    def ask(self, question: Question) -> Prediction:
        if self.stopped.is_set():
            return Prediction(error=self._not_found or "it was not asked in time")
        try:
            response = self._infer(question.messages, tools=question.tools, abort_signal=self.stopped, **self._options)
            answer = response.text()
        except TrainerAborted:
            return Prediction(error=self._not_found or "it was not answered in time")
        except ArkorError as error:
            if isinstance(error, CloudApiError) and error.status == 404:
                self._not_found = str(error)
                self.stopped.set()  # every other question would fail in the same way
            return Prediction(error=str(error))
        if self._metric is None:
            return Prediction(answer)
        try:
            return Prediction(answer, float(self._metric(answer, question.expected)))
        except Exception as error:  # noqa: BLE001 - the caller's function may raise anything
            return Prediction(answer, None, f"the metric raised {type(error).__name__}: {error}")


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise `InvalidConfig` for options that no request can have, before the run begins."""
    for option in options:
        if option not in _OPTIONS:
            raise InvalidConfig(f"Evaluate.{option}", "is not an option of infer", f"use {', '.join(_OPTIONS)}")
    try:
        InferenceRequest([{"role": "user", "content": ""}], base_model="any", **options).check()
    except InvalidConfig as error:
        raise InvalidConfig(f"Evaluate.{error.field}", error.problem, error.remedy) from None


def exact_match(answer: str, expected: str | None) -> float:
    """Return 1 if the texts are equal without surrounding white space, else 0."""
    return float(expected is not None and answer.strip() == expected.strip())


def json_valid(answer: str, expected: str | None) -> float:  # noqa: ARG001 - a metric gets both
    """Return 1 if the answer is one JSON document without NaN and Infinity, else 0."""
    try:
        msgspec.json.decode(answer)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


METRICS: dict[str, Metric] = {"exact_match": exact_match, "json_valid": json_valid}


def _metric_for(given: Any, questions: Sequence[Question]) -> Metric | None:
    """Return the metric of this name, the given function, or the default. Raise `InvalidConfig`."""
    unexpected = next((question for question in questions if question.expected is None), None)
    if given is None:
        return exact_match if unexpected is None else None
    if given == "exact_match" and unexpected is not None:
        raise InvalidConfig("Evaluate.metric", f'"exact_match" needs an expected answer for {quote(unexpected.text)}')
    if isinstance(given, str) and given in METRICS:
        return METRICS[given]
    if not callable(given):
        names = ", ".join(map(repr, METRICS))
        raise InvalidConfig("Evaluate.metric", f"must be {names}, or a function of (answer, expected), not {given!r}")
    if signature := signature_mismatch(given, 2):
        raise InvalidConfig("Evaluate.metric", f"must take (answer, expected), and this one takes {signature}")
    metric: Metric = given
    return metric
