"""`Evaluate`: asks the model the same questions at each checkpoint, and the base model beside it."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import attrs
from attrs import frozen

from arkor.callbacks.contexts import CheckpointContext, CompletedContext, FinishedContext, Infer, StartedContext
from arkor.callbacks.evaluate.metrics import Metric, resolve_metric
from arkor.callbacks.evaluate.questions import Question, parse_questions
from arkor.errors import ArkorError, CloudApiError, InvalidConfig, TrainerAborted
from arkor.formatting import quote
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.jobs import Artifact, TrainingJob
from arkor.protocol.validation import Integer, boolean, is_finite, signature_mismatch, text
from arkor.results.evaluation import Answer, Evaluation
from arkor.results.training_result import TrainingResult

#: What of `infer` is not the caller's to set here.
_RESERVED_OPTIONS = {"self", "messages", "stream", "tools", "abort_signal"}
_OPTIONS = [name for name in inspect.signature(Infer.__call__).parameters if name not in _RESERVED_OPTIONS]

_NOT_FOUND = 404

#: How often the abort signal is looked at.
_POLL_SECONDS = 0.05


def _check_options(options: Mapping[str, Any]) -> None:
    """What no model could be asked is said before the run begins, not at its first checkpoint."""
    for option in options:
        if option not in _OPTIONS:
            raise InvalidConfig(f"Evaluate.{option}", f"is no option of infer; there are {', '.join(_OPTIONS)}")
    try:
        InferenceRequest([{"role": "user", "content": ""}], base_model="any", **options).check()
    except InvalidConfig as error:
        raise InvalidConfig(f"Evaluate.{error.field}", error.problem) from None


@frozen
class Prediction:
    """What one model answered to one question, or why it did not."""

    text: str | None = None
    score: float | None = None
    error: str | None = None


class Evaluate:
    """Ask `questions` of every `every`-th checkpoint and of the final adapter, and score the answers by `metric`.

    `questions` are prompts, messages or rows (the last message of the assistant is then the expected answer), a dict
    `{prompt: expected}`, or a file of rows (`FileDataset`, `Path`). `metric` is `"exact_match"`, `"json_valid"` or a
    function of `(answer, expected)` that returns a number; without one, answers that were expected are matched.

    With `base`, the base model is asked once, and its answers stand beside the others in `result.evaluations`.
    `concurrency` questions are on their way at once, and a sheet has `timeout` seconds; what is not answered by then
    is left out, as is what fails. `tell(evaluation)` is called for each one. `options` are those of `ctx.infer`;
    answers are greedy unless they say otherwise. Raises `InvalidConfig`.
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
        self.name = name
        self._metric = self._metric_for(metric)
        for field, count in (("every", every), ("concurrency", concurrency)):
            Integer(1)(f"Evaluate.{field}", count)
        if not is_finite(timeout) or not 0 < timeout < threading.TIMEOUT_MAX:
            raise InvalidConfig("Evaluate.timeout", f"must be seconds, above 0, not {timeout!r}")
        text("Evaluate.name", name)
        boolean("Evaluate.base", base)
        if tell is not None and (not callable(tell) or signature_mismatch(tell, 1)):
            raise InvalidConfig("Evaluate.tell", f"must be a function of one evaluation, like print, not {quote(tell)}")
        _check_options(options)
        self._every, self._base, self._concurrency, self._timeout, self._on_evaluation = (
            every,
            base,
            concurrency,
            timeout,
            tell,
        )
        self._options = {"temperature": None if "top_p" in options else 0, **options}
        self._begin(None)

    def __repr__(self) -> str:
        return f"Evaluate(<{len(self.questions)} questions>, name={self.name!r})"

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Those of the run so far."""
        return tuple(self._evaluations)

    def on_started(self, ctx: StartedContext) -> None:
        """Forget what another run was answered."""
        self._begin(ctx.job.id)

    def on_checkpoint(self, ctx: CheckpointContext) -> None:
        """Ask this one, if it is its turn."""
        if ctx.job.id != self._job_id:
            self._begin(ctx.job.id)
        self._seen += 1
        if self._seen % self._every == 0:
            self._evaluate(ctx.step, ctx.infer, ctx.job)

    def on_completed(self, ctx: CompletedContext) -> None:
        """Ask the final adapter, or take the answers of the last checkpoint if that is the same."""
        if ctx.job.id != self._job_id:
            self._begin(ctx.job.id)
        finals = [item.step for item in ctx.artifacts if isinstance(item, Artifact) and item.kind == "final"]
        last = self._evaluations[-1] if self._evaluations else None
        if last is not None and last.step in finals and not any(answer.error for answer in last.answers):
            self._add_evaluation(attrs.evolve(last, step=None))
        elif ctx.infer is not None:
            self._evaluate(None, ctx.infer, ctx.job)

    def on_finished(self, ctx: FinishedContext) -> TrainingResult | None:
        """Put the evaluations into the result."""
        if ctx.result is None or ctx.job.id != self._job_id:
            return None
        return attrs.evolve(ctx.result, evaluations=(*ctx.result.evaluations, *self._evaluations))

    def _begin(self, job_id: str | None) -> None:
        self._job_id = job_id
        self._seen = 0
        self._evaluations: list[Evaluation] = []
        self._base_predictions: list[Prediction] | None = None

    def _metric_for(self, metric: Any) -> Metric | None:
        unexpected = [question for question in self.questions if question.expected is None]
        if metric == "exact_match" and unexpected:
            problem = f"has nothing to match for {unexpected[0].text[:60]!r}: no answer is expected there"
            raise InvalidConfig("Evaluate.metric", f'"exact_match" {problem}')
        if metric is None:
            return None if unexpected else resolve_metric("exact_match")
        return resolve_metric(metric)

    def _evaluate(self, step: int | None, infer: Infer, job: TrainingJob) -> None:
        if self._base and self._base_predictions is None:
            self._base_predictions = self._ask_all(attrs.evolve(infer, adapter=None, base_model=job.config.model))
        base = self._base_predictions or [Prediction() for _ in self.questions]
        predictions = self._ask_all(infer)
        answers = map(_build_answer, self.questions, predictions, base)
        self._add_evaluation(Evaluation(self.name, step, tuple(answers)))

    def _add_evaluation(self, evaluation: Evaluation) -> None:
        self._evaluations.append(evaluation)
        if self._on_evaluation is not None:
            self._on_evaluation(evaluation)

    def _ask_all(self, infer: Infer) -> list[Prediction]:
        """What the model says to each question, in their order; nothing of it raises but Ctrl-C."""
        run = EvaluationRun(infer, self._metric, self._options)
        with ThreadPoolExecutor(self._concurrency, "arkor-evaluate") as pool:
            futures = [pool.submit(run.ask, question) for question in self.questions]
            try:
                self._wait_for(futures, infer.abort_signal)
            finally:
                run.stopped.set()
        return [future.result() for future in futures]

    def _wait_for(self, futures: list[Future[Prediction]], abort_event: threading.Event | None) -> None:
        """Until all have answered, or time is up, or nobody waits for the run any more."""
        deadline = time.monotonic() + self._timeout
        while (remaining := deadline - time.monotonic()) > 0 and not (abort_event is not None and abort_event.is_set()):
            if not wait(futures, min(remaining, _POLL_SECONDS)).not_done:
                return


class EvaluationRun:
    """The questions as one model is asked them; `stopped` ends the answers that have not come yet."""

    def __init__(self, infer: Infer, metric: Metric | None, options: Mapping[str, Any]) -> None:
        self.stopped = threading.Event()
        self._infer = infer
        self._metric = metric
        self._options = options
        self._missing_reason: str | None = None

    def ask(self, question: Question) -> Prediction:
        if self.stopped.is_set():
            return Prediction(error=self._missing_reason or "it was not asked in time")
        try:
            answer = self._infer(question.messages, tools=question.tools, abort_signal=self.stopped, **self._options)
            text = answer.text()
        except TrainerAborted:
            return Prediction(error=self._missing_reason or "it was not answered in time")
        except ArkorError as error:
            if isinstance(error, CloudApiError) and error.status == _NOT_FOUND:
                self._missing_reason = str(error)
                self.stopped.set()  # the others need not be asked
            return Prediction(error=str(error))
        return self._score(text, question.expected)

    def _score(self, text: str, expected: str | None) -> Prediction:
        if self._metric is None:
            return Prediction(text)
        try:
            return Prediction(text, float(self._metric(text, expected)))
        except Exception as error:  # noqa: BLE001 - the function is the caller's
            return Prediction(text, None, f"the metric raised {type(error).__name__}: {error}")


def _build_answer(question: Question, tuned: Prediction, base: Prediction) -> Answer:
    fields = (tuned.text, tuned.score, tuned.error, base.text, base.score, base.error)
    return Answer(question.text, question.expected, *fields)
