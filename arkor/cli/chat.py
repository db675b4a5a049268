"""Talk to a model in the terminal: the adapter of a run, one of its checkpoints, or a base model."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing, suppress
from typing import Any

import click
from attrs import define, field, frozen

from arkor.cli.output import is_interactive, say
from arkor.cli.runs import find_job
from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.errors import ArkorError
from arkor.protocol.chat import Adapter, InferenceRequest
from arkor.protocol.jobs import JobStatus, TrainingJob
from arkor.settings import STARTER_MODEL

Message = dict[str, str]


@frozen
class Target:
    """Who answers: an adapter or a base model, and what to call it."""

    name: str
    adapter: Adapter | None = None
    base_model: str | None = None


@define
class ChatSession:
    """The messages so far, and where they go."""

    client: CloudApiClient
    target: Target
    system: str | None
    settings: dict[str, Any]
    messages: list[Message] = field(factory=list)

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer as it comes; the question is remembered with what was answered, were it only half of it."""
        messages = [*self.messages, {"role": "user", "content": text}]
        head = [{"role": "system", "content": self.system}] if self.system else []
        target = self.target
        request = InferenceRequest(
            head + messages, adapter=target.adapter, base_model=target.base_model, stream=True, **self.settings
        )
        answer_text = ""
        with self.client.chat(request) as answer:
            try:
                for part in answer:
                    answer_text += part
                    yield part
            finally:
                if answer_text:
                    self.messages = [*messages, {"role": "assistant", "content": answer_text}]


@click.command()
@click.argument("target", required=False, metavar="[JOB[@STEP] | MODEL]")
@click.option("-m", "--message", help="Ask this one thing, print the answer, leave.")
@click.option("-s", "--system", help="The system prompt; best the one that the model was trained with.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 always picks the likeliest word.")
@click.option("--top-p", type=click.FloatRange(min=0, max=1), help="Pick only among the likeliest words.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The answer's length at most.")
def chat(target: str | None, message: str | None, system: str | None, **settings: Any) -> None:
    """Talk to a run's adapter (JOB), one of its checkpoints (JOB@STEP), or a base model.

    Without a target: to the latest run that completed. A question may also come through a pipe.
    """
    client = connect()
    conversation = ChatSession(client, _resolve_target(client, target), system, settings)
    if message is None and not is_interactive():
        message = sys.stdin.read().strip()
        if not message:
            raise click.UsageError("there is nothing to ask: stdin is empty, and there is no --message")
    if message is not None:
        _print_answer(conversation, message)
    else:
        _interactive_loop(conversation)


def _resolve_target(client: CloudApiClient, given: str | None) -> Target:
    if given is None:
        latest = next((job for job in client.iter_jobs() if job.status == JobStatus.COMPLETED), None)
        return _final(latest) if latest else Target(STARTER_MODEL, base_model=STARTER_MODEL)
    job_id, at, step = given.rpartition("@")
    if at and step.isdigit():
        job = find_job(client, job_id)
        return Target(f"{job.name} at step {step}", Adapter("checkpoint", job.id, int(step)))
    if given and client.list_jobs(limit=1, id_prefix=given):
        return _final(find_job(client, given))
    return Target(given, base_model=given)


def _final(job: TrainingJob) -> Target:
    return Target(f"{job.name} ({job.id})", Adapter("final", job.id))


def _print_answer(conversation: ChatSession, text: str) -> None:
    with closing(conversation.ask(text)) as parts:
        for part in parts:
            say(part, nl=False)
    say()


# A conversation in a terminal


def _interactive_loop(conversation: ChatSession) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - line editing and history for input()
    say(f"Talking to {conversation.target.name}. Ctrl-C stops an answer, Ctrl-D leaves, /help tells more.", err=True)
    while (line := _read_line()) is not None:
        if line.startswith("/"):
            _run_command(conversation, line)
        elif line.strip():
            _answer_or_report(conversation, line.strip())


def _read_line() -> str | None:
    """The next line, empty for one that was given up with Ctrl-C; None when there are no more."""
    try:
        return input("> ")
    except KeyboardInterrupt:
        say()
        return ""
    except EOFError:
        say()
        return None


def _answer_or_report(conversation: ChatSession, text: str) -> None:
    """Ctrl-C stops the answer; a refusal is shown, or ends it all when there has not been a single answer yet."""
    try:
        _print_answer(conversation, text)
    except KeyboardInterrupt:
        say()
    except ArkorError as error:
        if not conversation.messages:
            raise
        say(str(error), err=True)


_HELP = """/system TEXT   set the system prompt; /system alone shows it, /system - takes it away
/model NAME    go on with another: JOB, JOB@STEP or a base MODEL; /model alone shows which it is
/new           forget what was said
/help          this list
A message that begins with a slash: put a blank before it."""


def _run_command(conversation: ChatSession, line: str) -> None:
    """Do what a line that begins with a slash says."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/system":
        conversation.system = (None if rest == "-" else rest) if rest else conversation.system
        say(f"System prompt: {conversation.system or 'none'}", err=True)
    elif command == "/model":
        if rest:
            _change_target(conversation, rest)
        say(f"Talking to {conversation.target.name}.", err=True)
    elif command == "/new":
        conversation.messages = []
        say("What was said is forgotten.", err=True)
    else:
        say(_HELP if command == "/help" else f"There is no {command} here.\n{_HELP}", err=True)


def _change_target(conversation: ChatSession, name: str) -> None:
    try:
        conversation.target = _resolve_target(conversation.client, name)
    except (ArkorError, click.ClickException) as error:
        say(error.format_message() if isinstance(error, click.ClickException) else str(error), err=True)
