from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
from attrs import define

from arkor.backend.inference.messages import (
    CallDelta,
    CompletionRequest,
    Delta,
    Done,
    Failed,
    Reply,
    TokenLogprob,
    completion_from_json,
    reply_from_json,
    reply_to_json,
)

pytestmark = pytest.mark.slow  # real processes, terminals or clocks


@define
class Served:
    """A serving process, with the server's side of its pipes."""

    process: subprocess.Popen[bytes]

    def put(self, line: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, name: str, text: str, *, model: str = "any", **more: Any) -> None:
        completion = CompletionRequest(name, model, None, ({"role": "user", "content": text},), **more)
        self.put({"completion": attrs.asdict(completion)})

    def reply(self) -> Reply:
        assert self.process.stdout is not None
        return reply_from_json(json.loads(self.process.stdout.readline()))

    def text(self) -> str:
        """Return the text of the only answer."""
        text = ""
        while isinstance(reply := self.reply(), Delta):
            text += reply.text
        assert isinstance(reply, Done)
        return text


def serve(home: Path, engine: str, **environment: str) -> Served:
    command = [sys.executable, "-m", "arkor.backend.inference.process", "--home", str(home), "--engine", engine]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return Served(subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True, **pipes))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A serving process of the scripted engine, with a word every 10 ms."""
    one = serve(tmp_path, "scripted", ARKOR_SCRIPTED_TOKEN_SECONDS="0.01")
    with one.process:
        yield one
        one.process.kill()


TOKEN = TokenLogprob((226, 130), -0.5, (((226, 130), -0.5), ((97,), -1.5)))


@pytest.mark.parametrize(
    "reply",
    [
        Delta("a", "ü"),
        Delta("a", "", (TOKEN, TokenLogprob((97,), None))),
        Done("a", "stop", 3, 4),
        Done("a", "stop", 0, 0, ("A note.",)),
        Failed("a", 503, "word", "Sentence."),
        CallDelta("a", 0, "", "call_1", "look"),
        CallDelta("a", 1, "{"),
    ],
)
def test_replies_survive_a_round_trip(reply: Reply) -> None:
    assert reply_from_json(json.loads(json.dumps(reply_to_json(reply)))) == reply


def test_half_a_character_is_written_as_bytes() -> None:
    assert (TOKEN.text, TokenLogprob((97,), None).text) == (r"bytes:\xe2\x82", "a")


def test_a_completion_survives_a_round_trip() -> None:
    request = CompletionRequest("a", "m", None, (), prompt=(1, 2), logit_bias=((5, -1.0),), stop=("x",), logprobs=2)
    assert completion_from_json(json.loads(json.dumps(attrs.asdict(request)))) == request


def test_answers_are_streamed(served: Served) -> None:
    served.ask("q", "héllo  wörld\n!")
    assert [served.reply() for _ in range(5)] == [
        Delta("q", "scripted: "),
        Delta("q", "héllo  "),
        Delta("q", "wörld\n"),
        Delta("q", "!"),
        Done("q", "stop", 3, 4),
    ]


def test_max_tokens_cuts(served: Served) -> None:
    served.ask("q", "one two three", max_tokens=2)
    assert [served.reply() for _ in range(3)][-1] == Done("q", "length", 3, 2)


def test_answers_are_generated_concurrently(served: Served) -> None:
    for name in "abc":
        served.ask(name, "word " * 50)
    replies = []
    while len([reply for reply in replies if isinstance(reply, Done)]) < 3:
        replies.append(served.reply())
    ends = [index for index, reply in enumerate(replies) if isinstance(reply, Done)]
    assert ends[0] > 100  # all answers were in progress before the first ended


def test_a_cancelled_answer_stops(served: Served) -> None:
    served.ask("long", "word " * 10_000)
    served.reply()
    served.put({"cancel": "long"})
    served.put({"cancel": "never there"})
    served.ask("short", "bye")
    while (reply := served.reply()).id == "long":
        pass
    assert reply == Delta("short", "scripted: ")
    assert served.reply() == Delta("short", "bye")


@pytest.mark.parametrize("model", ["scripted/fail", "scripted/break"])
def test_a_failure_is_a_reply(served: Served, model: str) -> None:
    served.ask("q", "one two three", model=model)
    while isinstance(reply := served.reply(), Delta):
        pass
    assert isinstance(reply, Failed)
    assert reply.status == 503


def test_it_exits_when_stdin_ends_during_an_answer(served: Served) -> None:
    served.ask("q", "word " * 10_000)
    served.reply()
    assert served.process.stdin is not None
    served.process.stdin.close()
    assert served.process.wait(timeout=10) == 0


def test_it_uses_no_cpu_time_when_idle(served: Served) -> None:
    served.ask("q", "hello")
    served.text()
    process = psutil.Process(served.process.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(0.5)
    assert sum(process.cpu_times()[:2]) - before <= 0.02


def test_it_has_a_lower_priority_than_runs(served: Served) -> None:
    served.ask("q", "hello")
    served.text()
    assert psutil.Process(served.process.pid).nice() == os.nice(0) + 5
    score = Path(f"/proc/{served.process.pid}/oom_score_adj")
    if score.exists():
        assert int(score.read_text()) == 500


# Real models


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.fakes.tiny_model import make_base  # noqa: PLC0415 - imports torch

    return make_base(tmp_path_factory.mktemp("model") / "base", context=60_000)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Served]:
    """A serving process of the real engine, which takes seconds to import what it needs."""
    one = serve(tmp_path_factory.mktemp("real"), "trl", OMP_NUM_THREADS="1", ARKOR_SERVING_ENGINE=engine)
    with one.process:
        yield one
        one.process.kill()


def test_the_real_generator_answers_over_the_pipe(real: Served, base: str, tmp_path: Path) -> None:
    real.ask("q", "Hello", model=base, max_tokens=12)
    assert real.text()
    real.ask("q", "Hello", model=str(tmp_path / "nowhere"))
    assert isinstance(real.reply(), Failed)


@pytest.mark.skipif(sys.platform != "linux", reason="the system sets no limit on another process")
def test_out_of_memory_fails_one_answer_only(real: Served, base: str) -> None:
    """The memory limit of the process is barely above its current use."""
    import resource  # noqa: PLC0415 - not on every system

    real.ask("q", "Hello", model=base, max_tokens=3)
    assert real.text()
    used = psutil.Process(real.process.pid).memory_info().vms
    unlimited = resource.prlimit(real.process.pid, resource.RLIMIT_AS, (used + 24 * 2**20, resource.RLIM_INFINITY))
    real.ask("large", "x" * 50_000, model=base, max_tokens=3)
    while not isinstance(failed := real.reply(), Failed):
        pass
    assert (failed.status, failed.code) == (503, "out_of_memory")
    assert "memory" in failed.sentence
    resource.prlimit(real.process.pid, resource.RLIMIT_AS, unlimited)
    real.ask("q", "Hello", model=base, max_tokens=3)
    assert real.text()


def test_the_real_generator_ends_with_its_stdin(real: Served, base: str) -> None:
    real.ask("q", "Hello", model=base, max_tokens=3)
    assert real.text()
    assert real.process.stdin is not None
    real.process.stdin.close()
    assert real.process.wait(timeout=30) == 0
