"""Text completions, log-probabilities, penalties and template variables, compared with transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from arkor.backend.compute.device import choose_device
from arkor.backend.compute.gguf import cache
from arkor.backend.inference import model_cache
from arkor.backend.inference.generator import ModelGenerator
from arkor.backend.inference.messages import CompletionRequest, Delta, Done, Failed, Reply, TokenLogprob
from tests.backend.inference.test_generator import run, text_of
from tests.fakes.tiny_model import CHATML, make_tiny_model

pytestmark = pytest.mark.slow  # torch alone takes seconds to import

PROMPT = "Grüße aus 東京"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture
def generator(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> ModelGenerator:
    monkeypatch.setattr(model_cache, "choose_device", lambda: choose_device("float32"))
    monkeypatch.setattr(cache, "NUMBER_FORMAT", "f32")
    return ModelGenerator(tmp_path)


def continued(base: str, prompt: Any = PROMPT, name: str = "q", **more: Any) -> CompletionRequest:
    return CompletionRequest(name, base, None, (), prompt=prompt, **more)


def answer(generator: ModelGenerator, completion: CompletionRequest) -> list[Reply]:
    generator.submit(completion)
    return run(generator)[completion.id]


def tokens_of(replies: list[Reply]) -> list[TokenLogprob]:
    return [token for reply in replies if isinstance(reply, Delta) for token in reply.logprobs]


def expected_logprobs(base: str, tokens: list[int]) -> torch.Tensor:
    """Return the log-probabilities after each token, (tokens, vocabulary)."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), dim=-1)


def greedy(base: str, prompt: list[int], count: int, **options: Any) -> list[int]:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, **options)
    return [int(token) for token in out[0, len(prompt) :]]


def test_a_prompt_is_continued_without_the_chat_template(base: str, generator: ModelGenerator) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = tokenizer(PROMPT)["input_ids"]
    expected = tokenizer.decode(greedy(base, tokens, 20), skip_special_tokens=True)
    for prompt in (PROMPT, tuple(tokens)):
        replies = answer(generator, continued(base, prompt, max_tokens=20))
        assert text_of(replies) == expected
        done = replies[-1]
        assert isinstance(done, Done)
        assert done.prompt_tokens == len(tokens)


def test_special_tokens_of_a_prompt_keep_their_meaning(base: str, generator: ModelGenerator) -> None:
    done = answer(generator, continued(base, "<|im_start|>a<|im_end|>", max_tokens=1))[-1]
    assert isinstance(done, Done)
    assert done.prompt_tokens == 3


def test_the_logprobs_of_a_prompt_are_those_of_transformers(
    base: str, generator: ModelGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lm-eval asks for them; the prompt is computed in several parts."""
    monkeypatch.setattr("arkor.backend.inference.batch.SCORED_PREFILL_TOKENS", 5)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens = tokenizer(PROMPT)["input_ids"]
    replies = answer(generator, continued(base, tuple(tokens), echo=True, logprobs=3, max_tokens=1))
    assert isinstance(replies[0], Delta)
    assert replies[0].text == PROMPT
    found = tokens_of(replies)
    generated = greedy(base, tokens, 1)
    assert [bytes(token.data) for token in found[: len(tokens)]] == [bytes([byte]) for byte in PROMPT.encode()]
    assert len(found) == len(tokens) + 1
    scores = expected_logprobs(base, tokens)
    assert found[0].logprob is None
    for position, token in enumerate([*tokens[1:], *generated]):
        assert found[position + 1].logprob == pytest.approx(float(scores[position, token]), abs=1e-3)
        best = scores[position].topk(3).values.tolist()
        assert [logprob for _, logprob in found[position + 1].top] == pytest.approx(best, abs=1e-3)
    last = found[-1]
    assert last.logprob == max(logprob for _, logprob in last.top)  # equal, not only close


def test_an_echo_alone_generates_nothing(base: str, generator: ModelGenerator, engine: str) -> None:
    replies = answer(generator, continued(base, "abc", echo=True, logprobs=0, max_tokens=0))
    assert [bytes(token.data) for token in tokens_of(replies)] == [b"a", b"b", b"c"]
    assert replies[-1] == Done("q", "length", 3, 0, engine=engine)
    assert not generator.busy


def test_the_logprobs_of_a_sampled_answer_are_before_sampling(base: str, generator: ModelGenerator) -> None:
    """Neither temperature nor penalties nor biases change them, and batching does not either."""
    options: dict[str, Any] = {"temperature": 1.7, "top_p": 0.9, "presence_penalty": 1.0, "logit_bias": ((70, 3.0),)}
    for number in range(3):
        generator.submit(continued(base, "abc" * (number + 1), str(number), logprobs=0, max_tokens=12, **options))
    alphabet = {bytes([byte]): AutoTokenizer.from_pretrained(base)(chr(byte))["input_ids"] for byte in range(32, 127)}
    for name, replies in run(generator).items():
        prompt = AutoTokenizer.from_pretrained(base)("abc" * (int(name) + 1))["input_ids"]
        found = tokens_of(replies)
        assert "".join(token.text for token in found if not token.text.startswith(("bytes:", "<|")))
        read = []
        for token in found:
            scores = expected_logprobs(base, prompt + read)[-1]
            candidates = alphabet.get(bytes(token.data))
            token_id = candidates[0] if candidates else int((scores - token.logprob).abs().argmin())
            assert token.logprob == pytest.approx(float(scores[token_id]), abs=2e-3)
            read.append(token_id)


def test_tokens_of_a_stop_string_are_left_out(base: str, generator: ModelGenerator) -> None:
    letters = AutoTokenizer.from_pretrained(base)("abcdefgh")["input_ids"]
    asked: dict[str, Any] = {"max_tokens": 30, "logprobs": 0, "logit_bias": tuple((one, 100.0) for one in letters)}
    text = text_of(answer(generator, continued(base, temperature=1.0, seed=4, **asked)))
    stop = text[8:10]
    cut = answer(generator, continued(base, temperature=1.0, seed=4, stop=(stop, "z"), **asked))
    assert text_of(cut) == text[: text.index(stop)]
    assert "".join(token.text for token in tokens_of(cut)) == text_of(cut)


def test_a_stop_token_has_a_logprob_in_a_continued_text_only(base: str, generator: ModelGenerator) -> None:
    """OpenAI's chats leave it out, but lm-eval drops the last token of a text."""
    forced = {"logit_bias": ((2, 100.0),), "logprobs": 0}
    replies = answer(generator, continued(base, max_tokens=5, **forced))
    assert [token.text for token in tokens_of(replies)] == ["<|im_end|>"]
    messages = ({"role": "user", "content": "a"},)
    replies = answer(generator, CompletionRequest("c", base, None, messages, max_tokens=5, **forced))
    assert tokens_of(replies) == []
    assert replies[-1].finish_reason == "stop"  # type: ignore[union-attr]


def test_penalties_and_biases_change_the_answer(base: str, generator: ModelGenerator) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    [letter] = tokenizer("z")["input_ids"]
    biased = continued(base, max_tokens=6, logit_bias=((letter, 100.0),))
    assert text_of(answer(generator, biased)) == "zzzzzz"
    penalized = continued(base, max_tokens=6, logit_bias=((letter, 1.0),), frequency_penalty=2.0, presence_penalty=2.0)
    expected = tokenizer.decode(reference_penalized(base, tokenizer(PROMPT)["input_ids"], letter, 6))
    assert text_of(answer(generator, penalized)) == expected


def reference_penalized(base: str, prompt: list[int], biased: int, count: int) -> list[int]:
    """Return the greedy answer with both penalties of 2 and a bias of 1, by OpenAI's formula."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    answer: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, -1]
        logits[biased] += 1
        for token in set(answer):
            logits[token] -= 2 + 2 * answer.count(token)
        answer.append(int(logits.argmax()))
    return answer


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"prompt": (1, 999)}, "prompt", "999 is not a token of this model, which has 260"),
        ({"logit_bias": ((70_000, 1.0),)}, "logit_bias", "70000 is not a token of this model"),
        ({"prompt": "a" * 5000}, None, "this model takes 256 for prompt and answer"),
        ({"prompt": (70,) * 256}, None, "The prompt has 256 tokens"),
    ],
)
def test_what_a_model_cannot_continue(
    base: str, generator: ModelGenerator, change: dict[str, Any], field: str | None, sentence: str
) -> None:
    [failed] = answer(generator, continued(base, **{"max_tokens": 4, **change}))
    assert isinstance(failed, Failed)
    assert (failed.status, failed.field) == (400, field)
    assert sentence in failed.problem


def test_an_empty_prompt_begins_with_the_first_token(base: str, generator: ModelGenerator) -> None:
    done = answer(generator, continued(base, "", max_tokens=3))[-1]
    assert isinstance(done, Done)
    assert (done.prompt_tokens, done.completion_tokens) == (1, 3)


THINKING = CHATML.replace(
    "assistant\n' }}",
    "assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>' }}{% endif %}",
)
EFFORT = CHATML.replace(
    "assistant\n' }}", "assistant\n' }}{% if reasoning_effort is defined %}{{ reasoning_effort }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "asked", "added", "ignored"),
    [
        (THINKING, {"enable_thinking": False}, 7, ()),
        (THINKING, {"enable_thinking": True}, 0, ()),
        (THINKING, {"reasoning_effort": "none"}, 7, ()),
        (THINKING, {"reasoning_effort": "high"}, 0, ()),
        (THINKING, {"reasoning_effort": "high", "enable_thinking": False}, 7, ()),
        (EFFORT, {"reasoning_effort": "low"}, 3, ()),
        (EFFORT, {"reasoning_effort": "low", "enable_thinking": True}, 3, ("enable_thinking",)),
        (CHATML, {"reasoning_effort": "low", "enable_thinking": True}, 0, ("reasoning_effort", "enable_thinking")),
        (CHATML, {}, 0, ()),
    ],
)
def test_thinking_goes_to_templates_that_have_it(
    tmp_path: Path,
    generator: ModelGenerator,
    template: str,
    asked: dict[str, Any],
    added: int,
    ignored: tuple[str, ...],
) -> None:
    base = str(make_tiny_model(tmp_path / "model", chat_template=template))
    messages = ({"role": "user", "content": "a"},)
    plain = answer(generator, CompletionRequest("plain", base, None, messages, max_tokens=1))[-1]
    done = answer(generator, CompletionRequest("q", base, None, messages, max_tokens=1, **asked))[-1]
    assert isinstance(plain, Done)
    assert isinstance(done, Done)
    assert done.prompt_tokens - plain.prompt_tokens == added
    assert done.notes == tuple(f"{name} has no effect: the chat template of this model ignores it." for name in ignored)
