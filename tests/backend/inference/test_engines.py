"""The choice of an engine, and what happens when llama.cpp cannot answer."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp")
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MistralConfig

from arkor.backend.compute.device import choose_device
from arkor.backend.compute.gguf import cache
from arkor.backend.inference import engines, model_cache
from arkor.backend.inference.generator import ModelGenerator
from arkor.backend.inference.llama_cpp import context, library
from arkor.backend.inference.llama_cpp.context import Context, NativeModel
from arkor.backend.inference.llama_cpp.library import EngineUnavailable, load_library
from arkor.backend.inference.llama_cpp.model import LlamaModel
from arkor.backend.inference.messages import CompletionRequest, Delta, Done, Failed, Reply
from arkor.backend.runs.paths import models_folder
from tests.backend.inference.test_generator import reference, run, text_of
from tests.fakes.tiny_model import make_adapter, make_base

pytestmark = [
    pytest.mark.slow,  # imports torch
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]

QUESTION = ({"role": "user", "content": "What is your name, and why?"},)
LONG = ({"role": "user", "content": "word " * 30},)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("engines") / "base")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: str) -> dict[str, str]:
    root = tmp_path_factory.mktemp("adapters")
    settings = LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(5)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(root / "dora")
    good = {name: make_adapter(root / name, base, seed=seed) for seed, name in enumerate(("one", "two"), start=1)}
    return {"dora": str(root / "dora"), "nan": make_adapter(root / "nan", base, scale=math.nan), **good}


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines in fp32, whose greedy answers are equal."""
    monkeypatch.setattr(model_cache, "choose_device", lambda: choose_device("float32"))
    monkeypatch.setattr(cache, "NUMBER_FORMAT", "f32")
    monkeypatch.delenv("ARKOR_SERVING_ENGINE", raising=False)


@pytest.fixture
def generator(tmp_path: Path) -> ModelGenerator:
    return ModelGenerator(tmp_path)


def ask(
    base: str, adapter: str | None = None, name: str = "q", messages: Any = QUESTION, **more: Any
) -> CompletionRequest:
    return CompletionRequest(name, base, adapter, messages, **{"max_tokens": 25, **more})


def answer(generator: ModelGenerator, completion: CompletionRequest) -> tuple[str, str | None]:
    """Return the text of an answer and the engine that wrote its end."""
    generator.submit(completion)
    return of(run(generator)[completion.id])


def of(replies: list[Reply]) -> tuple[str, str | None]:
    assert isinstance(replies[-1], Done), replies[-1]
    return text_of(replies), replies[-1].engine


# The choice


def test_llama_cpp_answers_by_default(base: str, adapters: dict[str, str], generator: ModelGenerator) -> None:
    for adapter in (None, adapters["one"], adapters["two"], None):
        assert answer(generator, ask(base, adapter)) == (reference(base, adapter, QUESTION, 25), "llama.cpp")


@pytest.mark.parametrize("wanted", ["transformers", "llama.cpp"])
def test_the_engine_can_be_set(base: str, tmp_path: Path, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SERVING_ENGINE", wanted)
    assert answer(ModelGenerator(tmp_path), ask(base))[1] == wanted
    assert (models_folder(tmp_path) / "gguf").exists() == (wanted == "llama.cpp")


def test_the_reference_is_not_loaded_without_need(
    base: str, tmp_path: Path, generator: ModelGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(model_cache, "load_model", fail)
    assert answer(generator, ask(base))[1] == "llama.cpp"


def test_another_architecture_goes_to_the_reference(tmp_path: Path, generator: ModelGenerator) -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 257}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, eos_token_id=256)
    folder = make_base(tmp_path / "mistral", config=config)
    for _ in range(2):
        assert answer(generator, ask(folder)) == (reference(folder, None, QUESTION, 25), "transformers")


def test_an_adapter_that_cannot_be_converted_goes_to_the_reference(
    base: str, adapters: dict[str, str], generator: ModelGenerator
) -> None:
    expected = reference(base, adapters["dora"], QUESTION, 25)
    for _ in range(2):
        assert answer(generator, ask(base, adapters["dora"])) == (expected, "transformers")
    assert answer(generator, ask(base, adapters["one"]))[1] == "llama.cpp"


def test_a_full_disk_does_not_refuse_an_answer(
    base: str, generator: ModelGenerator, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    assert answer(generator, ask(base)) == (reference(base, None, QUESTION, 25), "transformers")
    assert "llama.cpp cannot use" in capfd.readouterr().err


def test_the_library_must_be_a_tested_one(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library.cache_clear()
    monkeypatch.setattr(library, "installed_version", lambda: "2031.1.1")
    with pytest.raises(EngineUnavailable, match=r"cannot use xllamacpp 2031\.1\.1: it is not one of"):
        load_library()
    assert answer(ModelGenerator(tmp_path), ask(base))[1] == "transformers"
    load_library.cache_clear()


def test_a_library_with_other_structures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    load_library.cache_clear()
    monkeypatch.setitem(library._DEFAULTS, "n_seq_max", 7)
    with pytest.raises(EngineUnavailable, match="the default of n_seq_max is 1, not 7"):
        load_library()
    load_library.cache_clear()


# Failures


def test_a_model_that_ends_processes_goes_to_the_reference(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two processes are killed while llama.cpp loads the model; a success in between counts anew."""
    script = f"""
import os, sys, traceback
from pathlib import Path
from arkor.backend.inference.llama_cpp.loading import load_llama_model
from arkor.backend.inference.llama_cpp.model import LlamaModel

def load(dies):
    if dies:
        LlamaModel.warm_up = lambda self: os._exit(9)
    try:
        load_llama_model("any", {base!r}, Path({str(tmp_path)!r}))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

for how in ("dies", "works", "dies", "dies", "dies"):
    if (child := os.fork()) == 0:
        load(how == "dies")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    codes = list(map(int, done.stdout.split()))
    assert codes == [9, 0, 9, 9, 1]
    cached = next((models_folder(tmp_path) / "gguf").glob("*.crashes"))
    assert "has ended 2 processes" in capfd.readouterr().err
    monkeypatch.setattr(cache, "NUMBER_FORMAT", "f16")  # as in the processes
    assert answer(ModelGenerator(tmp_path), ask(base))[1] == "transformers"
    cached.unlink()
    assert answer(ModelGenerator(tmp_path), ask(base))[1] == "llama.cpp"


def test_an_answer_that_fails_in_the_middle_is_continued(
    base: str, adapters: dict[str, str], generator: ModelGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several answers fail together, after some of their tokens were sent."""
    decode, calls = Context.decode, []

    def fails(self: Context, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(self)
        if len(calls) == 9:
            raise EngineUnavailable("out of order")
        return decode(self, *arguments, **options)

    monkeypatch.setattr(Context, "decode", fails)
    for name in ("a", "b"):
        generator.submit(ask(base, adapters["one"], name, stop=("never there",)))
    replies = run(generator)
    expected = reference(base, adapters["one"], QUESTION, 25)
    assert of(replies["a"]) == of(replies["b"]) == (expected, "transformers")
    assert replies["a"][-1].completion_tokens == 25  # type: ignore[union-attr]
    assert len(calls) == 9


def test_a_diverged_adapter_is_reported_by_the_reference(
    base: str, adapters: dict[str, str], generator: ModelGenerator
) -> None:
    generator.submit(ask(base, adapters["nan"]))
    [failed] = run(generator)["q"]
    assert isinstance(failed, Failed)
    assert failed.code == "model_diverged"


def test_echoed_log_probabilities_survive_a_failure(
    base: str, generator: ModelGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arkor.backend.inference.batch.SCORED_PREFILL_TOKENS", 5)
    completion = CompletionRequest("q", base, None, (), prompt="An echoed text.", echo=True, logprobs=0, max_tokens=3)
    generator.submit(completion)
    [echo, *_] = run(generator)["q"]
    decode, calls = Context.decode, []

    def fails(self: Context, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(self)
        if len(calls) == 2:
            raise EngineUnavailable("out of order")
        return decode(self, *arguments, **options)

    monkeypatch.setattr(Context, "decode", fails)
    generator.submit(completion)
    [again, *_, done] = run(generator)["q"]
    assert isinstance(echo, Delta)
    assert isinstance(again, Delta)
    assert isinstance(done, Done)
    assert done.engine == "transformers"
    assert len(again.logprobs) == len(echo.logprobs) == len("An echoed text.")
    for one, other in zip(echo.logprobs[1:], again.logprobs[1:], strict=True):
        assert one.data == other.data
        assert one.logprob == pytest.approx(other.logprob, abs=0.05)


# Long prompts


@pytest.fixture
def fp16_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of 16 bits, as for weights of 16 bits."""
    monkeypatch.setattr(LlamaModel, "full_precision", False)


@pytest.mark.usefixtures("fp16_cache")
def test_a_long_prompt_is_read_by_the_reference(
    base: str, adapters: dict[str, str], generator: ModelGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "MAX_PROMPT_TOKENS", 60)
    inserted = []
    insert = Context.insert
    monkeypatch.setattr(Context, "insert", lambda self, *rest: inserted.append(len(rest[1])) or insert(self, *rest))
    for adapter in (None, adapters["one"]):
        assert answer(generator, ask(base, adapter, messages=LONG)) == (reference(base, adapter, LONG, 25), "llama.cpp")
    assert len(inserted) == 2
    assert answer(generator, ask(base, messages=LONG))[1] == "llama.cpp"
    assert len(inserted) == 2  # its tokens are still there
    for _ in range(2):  # a seed makes answers independent of earlier ones
        assert answer(generator, ask(base, messages=LONG, seed=1))[1] == "llama.cpp"
    assert len(inserted) == 4


@pytest.mark.usefixtures("fp16_cache")
def test_a_prompt_that_cannot_be_handed_over_stays(
    base: str, generator: ModelGenerator, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Keys in the wrong order are detected, and later prompts are read by llama.cpp."""
    monkeypatch.setattr(engines, "MAX_PROMPT_TOKENS", 60)
    states = LlamaModel.states

    def reversed_rows(self: LlamaModel, layers: Any) -> Any:
        keys, values = states(self, layers)
        return [key.flip(1) for key in keys], values

    monkeypatch.setattr(LlamaModel, "states", reversed_rows)
    expected = reference(base, None, LONG, 25)
    assert answer(generator, ask(base, messages=LONG)) == (expected, "transformers")
    assert "log-probabilities differ by" in capfd.readouterr().err
    assert answer(generator, ask(base, messages=LONG)) == (expected, "llama.cpp")


# Sequences in a context


def tokens(text: str) -> list[int]:
    return list(text.encode())


@pytest.fixture(scope="module")
def native(base: str, tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    from arkor.backend.compute.gguf.base_model import write_base  # noqa: PLC0415 - imports torch
    from arkor.backend.compute.models import load_configs, load_tokenizer  # noqa: PLC0415 - as above

    file = tmp_path_factory.mktemp("native") / "base.gguf"
    write_base(Path(base), file, load_configs(base)[0], load_tokenizer(base), "f32")
    return NativeModel(file)


def test_sequences_grow_without_affecting_each_other(native: NativeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The context is replaced while they grow in number and in length; a closed one is reused."""
    monkeypatch.setattr(context, "GRANULARITY", 256)
    texts = [tokens(letter * 5) for letter in "abcde"]
    alone = [final_logits(Context(native), text + [65] * 300) for text in texts]
    together = Context(native)
    rows = []
    for text in texts:
        number, kept = together.open(text)
        assert kept == 0
        together.decode([(number, text)], keep_all=False)
        rows.append(number)
    assert sorted(rows) == [0, 1, 2, 3, 4]
    for _ in range(3):
        logits = together.decode([(row, [65] * 100) for row in rows], keep_all=False)
    for ours, theirs in zip(logits, alone, strict=True):
        assert float((ours - theirs).abs().max()) < 0.05


def final_logits(empty: Context, prompt: list[int]) -> torch.Tensor:
    number, _ = empty.open(prompt)
    return empty.decode([(number, prompt)], keep_all=False)[0].clone()


def test_a_prompt_continues_a_kept_sequence(native: NativeModel) -> None:
    one, other = tokens("The same beginning, and one end."), tokens("The same beginning, and others.")
    expected = final_logits(Context(native), other)
    used = Context(native)
    number, _ = used.open(one)
    used.decode([(number, one)], keep_all=False)
    used.close(number)
    again, kept = used.open(other)
    assert (again, kept) == (number, len("The same beginning, and o"))
    ours = used.decode([(again, other[kept:])], keep_all=False)[0]
    assert float((ours - expected).abs().max()) < 0.05
    used.close(again)
    assert used.open(other)[1] == len(other) - 1  # one is left to compute
    fresh = Context(native)
    number, _ = fresh.open(one)
    fresh.decode([(number, one)], keep_all=False)
    fresh.close(number)
    assert fresh.open(one, reuse=False)[1] == 0
    assert fresh.open(tokens("The"))[1] == 0  # too few to be worth it
