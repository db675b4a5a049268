from __future__ import annotations

import math
import shutil
import time
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
)

from arkor.backend.compute.device import choose_device
from arkor.backend.compute.gguf import cache
from arkor.backend.inference import model_cache
from arkor.backend.inference.generator import ModelGenerator
from arkor.backend.inference.messages import CompletionRequest, Delta, Done, Failed, GenerationError, Reply
from arkor.backend.inference.model_cache import ModelCache
from arkor.backend.inference.reference.batch import _cache_argument
from arkor.settings import STARTER_MODEL
from tests.conftest import install_starter
from tests.fakes.tiny_model import byte_tokenizer, make_adapter, make_base

pytestmark = pytest.mark.slow  # torch alone takes seconds to import

QUESTION = ({"role": "user", "content": "Wie heißt du? 你好"},)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    base = make_base(root / "base")
    adapters = {name: make_adapter(root / name, base, seed=seed) for seed, name in enumerate(("one", "two"), start=1)}
    return {"base": base, "nan": make_adapter(root / "nan", base, scale=math.nan), **adapters}


@pytest.fixture
def generator(tmp_path: Path, engine: str) -> ModelGenerator:
    return ModelGenerator(tmp_path)


def ask(
    folders: dict[str, str], name: str = "q", adapter: str | None = None, text: str | None = None, **more: Any
) -> CompletionRequest:
    messages = QUESTION if text is None else ({"role": "user", "content": text},)
    return CompletionRequest(name, folders["base"], folders[adapter] if adapter else None, messages, **more)


def run(generator: ModelGenerator, seconds: float = 60) -> dict[str, list[Reply]]:
    """Run the generator until it is idle; return the replies by id."""
    replies: dict[str, list[Reply]] = {}
    deadline = time.monotonic() + seconds
    while generator.busy:
        assert time.monotonic() < deadline
        for reply in generator.step():
            replies.setdefault(reply.id, []).append(reply)
    return replies


def text_of(replies: list[Reply]) -> str:
    assert isinstance(replies[-1], Done), replies[-1]
    return "".join(reply.text for reply in replies if isinstance(reply, Delta))


def reference(base: str, adapter: str | None, messages: Any, tokens: int) -> str:
    """Return the greedy answer of `generate` of transformers."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    output: str = tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
    return output


@pytest.fixture
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator in fp32: in bf16 the padding of a batch may decide between equal logits."""
    monkeypatch.setattr(model_cache, "choose_device", lambda: choose_device("float32"))
    monkeypatch.setattr(cache, "NUMBER_FORMAT", "f32")


# Equality with transformers


@pytest.mark.usefixtures("fp32")
@pytest.mark.parametrize("adapter", [None, "one", "two"])
def test_greedy_answers_equal_transformers(
    folders: dict[str, str], generator: ModelGenerator, adapter: str | None
) -> None:
    expected = reference(folders["base"], folders[adapter] if adapter else None, QUESTION, 40)
    generator.submit(ask(folders, adapter=adapter, max_tokens=40))
    assert text_of(run(generator)["q"]) == expected


@pytest.mark.usefixtures("fp32")
def test_batching_does_not_change_answers(folders: dict[str, str], generator: ModelGenerator) -> None:
    """Answers differ in length and weights, and join and leave at different times."""
    payload = {
        f"{adapter} {number}": ask(
            folders, f"{adapter} {number}", adapter, "word " * (3 * number + 1), max_tokens=limit
        )
        for adapter in (None, "one", "two")
        for number, limit in enumerate((30, 5, 17))
    }
    replies: dict[str, list[Reply]] = {name: [] for name in payload}
    for completion in payload.values():
        generator.submit(completion)
        for reply in generator.step():
            replies[reply.id].append(reply)
    for name, more in run(generator).items():
        replies[name] += more
    for name, completion in payload.items():
        assert completion.max_tokens is not None
        alone = reference(completion.model, completion.adapter, completion.messages, completion.max_tokens)
        assert text_of(replies[name]) == alone, name


SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 257, "eos_token_id": 256}
HEADS: dict[str, Any] = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
ARCHITECTURES = {
    "sliding window": MistralConfig(**SIZES, **HEADS, sliding_window=16, initializer_range=0.5),
    "alternating windows": Gemma3TextConfig(
        **SIZES, **HEADS, head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "learned positions": GPT2Config(vocab_size=257, n_positions=256, n_embd=32, n_layer=2, n_head=4, eos_token_id=256),
    "no attention": MambaConfig(**SIZES, state_size=4),
}


def test_a_model_whose_forward_takes_no_cache_is_refused() -> None:
    """As Mamba in transformers 5.0: it takes the cache by `**kwargs` and ignores it."""
    assert (_cache_argument({"cache": 1, "past_key_values": 2}), _cache_argument(["past_key_values"])) == (
        "cache",
        "past_key_values",
    )
    with pytest.raises(GenerationError, match=r"pip install 'transformers>=5.24'"):
        _cache_argument(["input_ids", "cache_params", "kwargs"])


@pytest.mark.usefixtures("fp32")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_can_be_batched(tmp_path: Path, generator: ModelGenerator, name: str) -> None:
    base = make_base(tmp_path / "base", config=ARCHITECTURES[name])
    texts = ["a", "a long enough question to fill the window", "bc"]
    for text in texts:
        generator.submit(CompletionRequest(text, base, None, ({"role": "user", "content": text},), max_tokens=25))
    replies = run(generator)
    if "cache" not in signature(MambaForCausalLM.forward).parameters and name == "no attention":
        pytest.skip("Mamba takes no cache before transformers 5.24")
    for text in texts:
        assert text_of(replies[text]) == reference(base, None, [{"role": "user", "content": text}], 25)


@pytest.mark.usefixtures("fp32")
def test_a_long_prompt_is_computed_in_parts(
    tmp_path: Path, generator: ModelGenerator, monkeypatch: pytest.MonkeyPatch, folders: dict[str, str]
) -> None:
    monkeypatch.setattr("arkor.backend.inference.batch.PREFILL_TOKENS", 16)
    expected = reference(folders["base"], None, [{"role": "user", "content": "word " * 20}], 20)
    generator.submit(ask(folders, text="word " * 20, max_tokens=20))
    assert text_of(run(generator)["q"]) == expected


@pytest.mark.usefixtures("fp32")
def test_the_generation_config_is_applied(tmp_path: Path, generator: ModelGenerator) -> None:
    base = make_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.generation_config.repetition_penalty = 1.5
    model.generation_config.save_pretrained(base)
    expected = reference(base, None, QUESTION, 30)
    assert expected != reference(make_base(tmp_path / "plain"), None, QUESTION, 30)
    generator.submit(ask({"base": base}, max_tokens=30))
    assert text_of(run(generator)["q"]) == expected


# Length, usage, sampling


def test_usage_and_max_tokens(folders: dict[str, str], generator: ModelGenerator, engine: str) -> None:
    generator.submit(ask(folders, max_tokens=7))
    done = run(generator)["q"][-1]
    prompt = byte_tokenizer().apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    assert done == Done("q", "length", len(prompt.encode()) - len("</s>") + 1, 7, engine=engine)


def test_the_answer_ends_with_the_turn(folders: dict[str, str], generator: ModelGenerator) -> None:
    for number in range(12):
        generator.submit(ask(folders, str(number), temperature=50.0, max_tokens=400))
    ends = [replies[-1] for replies in run(generator).values()]
    stopped = [end for end in ends if isinstance(end, Done) and end.finish_reason == "stop"]
    assert stopped
    assert all(end.completion_tokens <= 400 for end in stopped)
    assert any(end.completion_tokens < 400 for end in stopped)


def test_the_context_limits_the_answer(tmp_path: Path, generator: ModelGenerator) -> None:
    base = {"base": make_base(tmp_path / "base", context=64)}
    generator.submit(ask(base, text="a" * 40))
    done = run(generator)["q"][-1]
    assert isinstance(done, Done)
    assert done.prompt_tokens + done.completion_tokens == 64


def test_a_prompt_that_is_too_long_is_reported_with_both_counts(tmp_path: Path, generator: ModelGenerator) -> None:
    base = {"base": make_base(tmp_path / "base", context=64)}
    generator.submit(ask(base, text="a" * 100))
    [failed] = run(generator)["q"]
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (400, "context_length_exceeded")
    assert "118 tokens" in failed.sentence
    assert "takes 64" in failed.sentence


# Stop strings, seeds


@pytest.mark.usefixtures("fp32")
def test_a_stop_string_ends_an_answer_across_tokens(folders: dict[str, str], generator: ModelGenerator) -> None:
    whole = reference(folders["base"], None, QUESTION, 60)
    stop = whole[20:24]
    assert len(stop) == 4
    generator.submit(ask(folders, max_tokens=60, stop=(stop, "never there, for sure")))
    replies = run(generator)["q"]
    assert text_of(replies) == whole[: whole.find(stop)]
    assert isinstance(replies[-1], Done)
    assert replies[-1].finish_reason == "stop"
    assert replies[-1].completion_tokens < 60


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_seed_determines_the_text_despite_batching(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, temperature: float
) -> None:
    monkeypatch.setattr(model_cache, "choose_device", lambda: choose_device(precision))
    generator = ModelGenerator(tmp_path)
    wish = {"temperature": temperature, "top_p": 0.95, "max_tokens": 60}
    output = set()
    for company in range(4):
        for number in range(company * 2):
            text = "word " * (5 * number + company)
            generator.submit(ask(folders, f"other {number}", text=text, seed=number % 2 or None, **wish))
        generator.submit(ask(folders, seed=11, **wish))
        output.add(text_of(run(generator)["q"]))
    assert len(output) == 1
    generator.submit(ask(folders, seed=12, **wish))
    assert (text_of(run(generator)["q"]) in output) == (temperature == 0)


def test_without_a_seed_answers_differ(folders: dict[str, str], generator: ModelGenerator) -> None:
    for number in range(2):
        generator.submit(ask(folders, str(number), temperature=1.5, max_tokens=40))
    replies = run(generator)
    assert text_of(replies["0"]) != text_of(replies["1"])


# Errors


def test_a_diverged_adapter_is_an_error(folders: dict[str, str], generator: ModelGenerator) -> None:
    generator.submit(ask(folders, adapter="nan"))
    generator.submit(ask(folders, "other", max_tokens=3))
    replies = run(generator)
    [failed] = replies["q"]
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (409, "model_diverged")
    assert text_of(replies["other"])


@pytest.mark.usefixtures("fp32")
@pytest.mark.parametrize("damage", ["cut", "pickle", "gone", "other model"])
def test_a_damaged_adapter_is_an_error_and_the_base_stays_intact(
    tmp_path: Path, folders: dict[str, str], generator: ModelGenerator, damage: str
) -> None:
    broken = Path(shutil.copytree(folders["one"], tmp_path / "broken"))
    tensors = broken / "adapter_model.safetensors"
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "pickle":
        tensors.rename(broken / "adapter_model.bin")
    elif damage == "gone":
        shutil.rmtree(broken)
    else:
        config = MistralConfig(**{**SIZES, "hidden_size": 16}, **HEADS)
        broken = Path(make_adapter_of(tmp_path / "other", config))
    generator.submit(CompletionRequest("q", folders["base"], str(broken), QUESTION))
    [failed] = run(generator)["q"]
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (409, "adapter_unusable")
    assert str(broken) in failed.sentence
    expected = reference(folders["base"], None, QUESTION, 20)
    generator.submit(ask(folders, max_tokens=20))
    assert text_of(run(generator)["q"]) == expected


def make_adapter_of(folder: Path, config: Any) -> str:
    return make_adapter(folder / "adapter", make_base(folder / "base", config=config))


def test_a_missing_model_is_an_error(tmp_path: Path, generator: ModelGenerator) -> None:
    generator.submit(CompletionRequest("q", str(tmp_path / "nowhere"), None, QUESTION))
    [failed] = run(generator)["q"]
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (400, "model_unavailable")
    assert "nowhere" in failed.sentence


def test_messages_that_the_template_rejects_are_an_error(folders: dict[str, str], generator: ModelGenerator) -> None:
    messages = ({"role": "assistant", "content": "first"},)
    generator.submit(CompletionRequest("q", folders["base"], None, messages))
    [failed] = run(generator)["q"]
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (400, "template_refused")
    assert "the user begins" in failed.sentence


def test_out_of_memory_fails_one_answer_only(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The allocation exceeds the memory of every machine."""
    monkeypatch.setenv("ARKOR_SERVING_ENGINE", "transformers")
    generator = ModelGenerator(tmp_path)
    model = generator._models.get(folders["base"]).result().model
    hook = model.register_forward_pre_hook(lambda *_: torch.empty(2**50))
    generator.submit(ask(folders, max_tokens=3))
    [failed] = run(generator)["q"]
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (503, "out_of_memory")
    hook.remove()
    generator.submit(ask(folders, max_tokens=3))
    assert text_of(run(generator)["q"])
    assert "Traceback" in capfd.readouterr().err


# Cancelling, memory


def test_cancelling_an_answer_does_not_affect_others(folders: dict[str, str], generator: ModelGenerator) -> None:
    for name in ("stays", "goes", "goes too"):
        generator.submit(ask(folders, name, max_tokens=20))
    first = {reply.id for _ in range(100) if generator.busy for reply in generator.step()[:1]}
    assert first
    generator.cancel("unknown")
    for name in ("waits", "goes", "goes too"):
        generator.submit(ask(folders, name, max_tokens=20))
    generator.step()
    for name in ("waits", "goes", "goes too"):
        generator.cancel(name)
    assert set(run(generator)) <= {"stays"}
    assert not generator.busy


def test_adapters_are_evicted(
    tmp_path: Path, folders: dict[str, str], generator: ModelGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arkor.backend.inference.reference.model.MAX_ADAPTERS", 2)
    monkeypatch.setattr("arkor.backend.inference.llama_cpp.model.MAX_ADAPTERS", 2)
    copies = [
        str(shutil.copytree(folders[name], tmp_path / f"{name}-{n}")) for n in range(3) for name in ("one", "two")
    ]
    output = []
    for folder in copies:
        generator.submit(CompletionRequest("q", folders["base"], folder, QUESTION, max_tokens=10))
        output.append(text_of(run(generator)["q"]))
    assert output[:2] == output[2:4] == output[4:]
    assert output[0] != output[1]


def test_a_replaced_adapter_is_reloaded(tmp_path: Path, folders: dict[str, str], generator: ModelGenerator) -> None:
    folder = tmp_path / "adapter"
    output = []
    for name in ("one", "two"):
        shutil.copytree(folders[name], folder, dirs_exist_ok=True, copy_function=shutil.copy)
        generator.submit(CompletionRequest("q", folders["base"], str(folder), QUESTION, max_tokens=10))
        output.append(text_of(run(generator)["q"]))
    assert output[0] != output[1]


@pytest.mark.usefixtures("fp32")
def test_unused_base_models_are_evicted(tmp_path: Path) -> None:
    bases = [make_base(tmp_path / str(number), seed=number) for number in range(3)]
    size = (Path(bases[0]) / "model.safetensors").stat().st_size
    shelf = ModelCache(tmp_path, limit=int(2.5 * size))
    loaded = [shelf.get(base).result() for base in bases]
    assert shelf.get(bases[2]).result() is loaded[2]
    assert shelf.get(bases[0]).result() is not loaded[0]
    shelf.evict_idle([loaded[2]])
    assert shelf.get(bases[2]).result() is loaded[2]


# The starter model


@pytest.mark.usefixtures("fp32")
def test_the_starter_model_equals_transformers(tmp_path: Path, generator: ModelGenerator, starter: Path) -> None:
    install_starter(tmp_path, starter)
    messages = ({"role": "user", "content": "What is the capital of France?"},)
    generator.submit(CompletionRequest("q", STARTER_MODEL, None, messages, max_tokens=20))
    output = text_of(run(generator, seconds=250)["q"])
    assert "Paris" in output
    assert output == reference(str(tmp_path / "models" / STARTER_MODEL), None, messages, 20)
