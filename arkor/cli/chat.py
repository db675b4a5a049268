"""The command `chat`: talk to an adapter or a base model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing, suppress
from typing import Any

import click
from attrs import define, field

from arkor.cli.output import is_interactive, say
from arkor.cli.runs import find_job
from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.errors import ArkorError
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.jobs import JobStatus
from arkor.protocol.model_target import ModelTarget
from arkor.settings import STARTER_MODEL

_HELP = """/system TEXT   set the system prompt; /system alone prints it, /system - removes it
/model NAME    switch to another model: JOB, JOB@STEP or a base MODEL; /model alone prints the current one
/new           start a new conversation
/help          print this list
To send a message that begins with a slash, put a space before it."""


@define
class ChatSession:
    """The messages so far, and the model that they are sent to, with its name for display."""

    client: CloudApiClient
    target: ModelTarget
    name: str
    system: str | None
    settings: dict[str, Any]
    messages: list[dict[str, str]] = field(factory=list)

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yield the parts of the answer; then add the question and the answer to the messages."""
        messages = [*self.messages, {"role": "user", "content": text}]
        head = [{"role": "system", "content": self.system}] if self.system else []
        target = self.target
        request = InferenceRequest(head + messages, target.adapter, target.base_model, **self.settings)
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
@click.option("-m", "--message", help="Send this message, print the answer and exit.")
@click.option("-s", "--system", help="The system prompt, ideally the same as in training.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 always picks the most likely token.")
@click.option("--top-p", type=click.FloatRange(min=0, max=1), help="Sample only from the most likely tokens.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The maximum length of the answer.")
def chat(target: str | None, message: str | None, system: str | None, **settings: Any) -> None:
    """Chat with a run's adapter (JOB), one of its checkpoints (JOB@STEP), or a base model.

    Default: the latest completed run. The message can also be piped to standard input.
    """
    client = connect()
    session = ChatSession(client, *_resolve_target(client, target), system, settings)
    if message is None and not is_interactive():
        message = sys.stdin.read().strip()
        if not message:
            raise click.UsageError("no message: standard input is empty and --message is missing")
    if message is not None:
        _print_answer(session, message)
    else:
        _interactive_loop(session)


def _resolve_target(client: CloudApiClient, given: str | None) -> tuple[ModelTarget, str]:
    """Return a run, checkpoint or base model, and its name. Raises `click.BadParameter`."""
    job_id, at, step = (given or "").rpartition("@")
    if at and step.isdigit():
        job = find_job(client, job_id)
        return ModelTarget.of_run(job.id, int(step)), f"{job.name} at step {step}"
    if given is None:
        found = next((job for job in client.iter_jobs() if job.status == JobStatus.COMPLETED), None)
    else:
        found = find_job(client, given) if given and client.list_jobs(limit=1, id_prefix=given) else None
    if found:
        return ModelTarget.of_run(found.id), f"{found.name} ({found.id})"
    model = STARTER_MODEL if given is None else given
    return ModelTarget(model), model


def _print_answer(session: ChatSession, text: str) -> None:
    with closing(session.ask(text)) as parts:
        for part in parts:
            say(part, nl=False)
    say()


def _interactive_loop(session: ChatSession) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - line editing and history for input()
    say(f"Chatting with {session.name}. Ctrl-C stops an answer, Ctrl-D exits, /help lists commands.", err=True)
    while (line := _read_line()) is not None:
        if line.startswith("/"):
            _run_command(session, line)
        elif line.strip():
            _answer_or_report(session, line.strip())


def _read_line() -> str | None:
    """Return the next line, "" after Ctrl-C, None after Ctrl-D."""
    try:
        return input("> ")
    except KeyboardInterrupt:
        say()
        return ""
    except EOFError:
        say()
        return None


def _answer_or_report(session: ChatSession, text: str) -> None:
    """Print the answer until Ctrl-C. Print an error too, but raise it if it is the first answer."""
    try:
        _print_answer(session, text)
    except KeyboardInterrupt:
        say()
    except ArkorError as error:
        if not session.messages:
            raise
        say(str(error), err=True)


def _run_command(session: ChatSession, line: str) -> None:
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/system":
        if rest:
            session.system = None if rest == "-" else rest
        say(f"System prompt: {session.system or 'none'}", err=True)
    elif command == "/model":
        try:
            if rest:
                session.target, session.name = _resolve_target(session.client, rest)
        except (click.ClickException, ArkorError) as error:
            say(error.format_message() if isinstance(error, click.ClickException) else str(error), err=True)
        say(f"Chatting with {session.name}.", err=True)
    elif command == "/new":
        session.messages = []
        say("Started a new conversation.", err=True)
    else:
        say(_HELP if command == "/help" else f"Unknown command {command}.\n{_HELP}", err=True)
