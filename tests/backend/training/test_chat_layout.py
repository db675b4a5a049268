"""Which characters of a chat are learnt, for the chat templates of many model families."""

from __future__ import annotations

import hashlib
import itertools
import json
from datetime import datetime
from typing import Any

import pytest
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arkor.backend.data.faults import DataError
from arkor.backend.inference.messages import CallDelta, ToolChoice
from arkor.backend.inference.prompts import PromptBuilder
from arkor.backend.inference.tool_calls.parser import ToolCallParser
from arkor.backend.training.tokenization import EncodedDataset, encode
from arkor.protocol.row_formats import Row, read_row
from tests.backend.chat_templates import all_templates, tokenizer_with, trl_templates
from tests.fakes.tiny_model import CHATML as CHATML_TEMPLATE

pytestmark = pytest.mark.slow  # the libraries of the tokenizers take seconds to import


@frozen
class Family:
    """What a template teaches: `learnt` and `thought`, the text of an answer without and with thoughts.

    `prompt` ends the text before an answer. `rewrites`: each answer has a text of its own. `last`
    is `learnt` for the last answer of a chat, if that is another one. `refuses` names the shapes
    that the template refuses, `call` and `between` are the text of a call.
    """

    prompt: str
    learnt: str
    thought: str | None = None
    rewrites: bool = False
    last: str | None = None
    refuses: tuple[str, ...] = ()
    call: str = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    between: str = "\n"


CHATML = Family("<|im_start|>assistant\n", "{}<|im_end|>\n")
NO_THOUGHTS = "<think>\n\n</think>\n\n"
QWEN3 = Family(
    CHATML.prompt, NO_THOUGHTS + "{}<|im_end|>\n", "<think>\nRed.\n</think>\n\n{}<|im_end|>\n", rewrites=True
)
QWEN3_5 = Family(
    CHATML.prompt + "<think>\n", "\n</think>\n\n{}<|im_end|>\n", "Red.\n</think>\n\n{}<|im_end|>\n", rewrites=True
)
DEEPSEEK = Family(
    "<｜Assistant｜><think>\n",
    "\n</think>\n\n{}<｜end▁of▁sentence｜>",
    "Red.\n</think>\n\n{}<｜end▁of▁sentence｜>",
    rewrites=True,
)
GEMMA = Family("<start_of_turn>model\n", "{}<end_of_turn>\n", refuses=("system", "first"))
GEMMA_4 = Family("<|turn>model\n", "{}<turn|>\n")
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Oslo"}}'
LLAMA = Family("<|start_header_id|>assistant<|end_header_id|>\n\n", "{}<|eot_id|>")
NEMOTRON = Family(CHATML.prompt + "<think>\n", "</think>{}<|im_end|>\n", "Red.</think>{}<|im_end|>\n", rewrites=True)
LFM2 = Family(CHATML.prompt, CHATML.learnt, "<think>Red.</think>{}<|im_end|>\n")
PHI_3 = Family("<|assistant|>\n", "{}<|end|>\n", last="{}<|end|>\n<eos>")
IDEFICS = Family("Assistant:", " {}<end_of_utterance>\n")

FAMILIES = {
    "cohere": Family("<|CHATBOT_TOKEN|>", "{}<|END_OF_TURN_TOKEN|>", refuses=("first",)),
    "cohere2": Family(
        "<|CHATBOT_TOKEN|><|START_RESPONSE|>", "{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", refuses=("first",)
    ),
    "deepseek_r1_distill": DEEPSEEK,
    "deepseekv3": DEEPSEEK,
    "diffusion_gemma": Family(GEMMA_4.prompt, GEMMA_4.learnt, "<|channel>thought\nRed.\n<channel|>{}<turn|>\n"),
    "gemma": GEMMA,
    "gemma3": Family(GEMMA.prompt, GEMMA.learnt, refuses=("first",)),
    "gemma4": GEMMA_4,
    "gemma4_v2": GEMMA_4,
    "gemma4_v3": GEMMA_4,
    "gemma4_v4": GEMMA_4,
    "gemma4_v5": Family(GEMMA_4.prompt, GEMMA_4.learnt, "<|channel>thought\nRed.\n<channel|>{}<turn|>\n"),
    "glm4moe": Family(
        "<|assistant|>",
        "\n<think></think>\n{}",
        "\n<think>Red.</think>\n{}<eos>",
        last="\n<think></think>\n{}<eos>",
    ),
    "gptoss": Family(
        "<|start|>assistant",
        "<|channel|>final<|message|>{}<|return|>",
        "<|channel|>analysis<|message|>Red.<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
        rewrites=True,
    ),
    "idefics3": IDEFICS,
    "lfm2": CHATML,
    "lfm2_2_5": LFM2,
    "lfm2_2_5_v2": LFM2,
    "lfm2_2_5_vl": LFM2,
    "lfm2_v2": CHATML,
    "llama3": LLAMA,
    "llama3_1": Family(LLAMA.prompt, LLAMA.learnt, call=LLAMA_CALL, refuses=("parallel",)),
    "llama3_2": Family(LLAMA.prompt, LLAMA.learnt, call=LLAMA_CALL, refuses=("parallel",)),
    "llava_next": Family("[/INST]", " {}</s> "),
    "muse_glimmer": Family(
        "<|start|>assistant",
        " to=user<|message|>{}<|eot|>",
        " to=self<|message|>Red.<|eom|><|start|>assistant to=user<|message|>{}<|eot|>",
    ),
    "nemotron_3_5_lightning": NEMOTRON,
    "nemotron_3_nano": Family(NEMOTRON.prompt, NEMOTRON.learnt, "Red.\n</think>\n{}<|im_end|>\n", rewrites=True),
    "nemotron_3_super": Family(NEMOTRON.prompt, NEMOTRON.learnt, "Red.\n</think>\n{}<|im_end|>\n", rewrites=True),
    "nemotron_3_ultra": NEMOTRON,
    "phi3": PHI_3,
    "phi3_5": PHI_3,
    "qwen2_5": CHATML,
    "qwen2_5_vl": CHATML,
    "qwen3": QWEN3,
    "qwen3_5_nothink": Family(
        CHATML.prompt + NO_THOUGHTS, CHATML.learnt, "Red.\n</think>\n\n{}<|im_end|>\n", rewrites=True
    ),
    "qwen3_5_think": QWEN3_5,
    "qwen3_6": QWEN3_5,
    "qwen3_8": Family(QWEN3_5.prompt, QWEN3_5.learnt, QWEN3_5.thought),
    "qwen3_instruct_2507": CHATML,
    "qwen3_vl": CHATML,
    "smolvlm": IDEFICS,
    "mistral_v0_3": Family(
        "[/INST]",
        " {}<eos>",
        call='[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}, "id": "ID"}',
        between=", ",
        refuses=("first",),
    ),
    "llama_2": Family("[/INST]", " {} <eos>", refuses=("first",)),
    "vicuna": Family("ASSISTANT:", " {}<eos>"),
    "alpaca": Family("### Response:\n", "{}\n\n", last="{}\n\n<eos>"),
    "never_prompts": Family("<|im_end|>\n", "<|im_start|>assistant\n{}<|im_end|>\n"),
    "always_prompts": CHATML,
    "phi_4": Family("<|im_start|>assistant<|im_sep|>", "{}<|im_end|>"),
    "smollm3": CHATML,
    "granite": Family(
        "<|start_of_role|>assistant<|end_of_role|>",
        "{}<|end_of_text|>\n",
        call='<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}',
        between=", ",
    ),
    "kimi_k2": Family("<|im_assistant|>assistant<|im_middle|>", "{}<|im_end|>"),
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: tokenizer_with(source) for name, source in all_templates().items()}


def test_every_template_of_trl_is_listed() -> None:
    assert set(trl_templates()) <= set(FAMILIES)


def user(text: str = "Name a fruit.") -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}},
    },
}


def call(city: str = "Oslo", call_id: str = "call_abcdef123456") -> dict[str, Any]:
    arguments = json.dumps({"city": city})
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def result(text: str, call_id: str = "call_abcdef123456") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def encoded(tokenizer: Any, row: dict[str, Any], **options: Any) -> EncodedDataset:
    rows: list[Row] = [read_row(row, "chatml")]
    return encode(rows, tokenizer, **{"answers_only": True, "max_length": 100_000, **options})


def texts(tokenizer: Any, examples: EncodedDataset) -> list[list[tuple[str, bool]]]:
    """The texts, each in parts that are learnt (True) or not."""
    found = []
    for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
        parts: list[tuple[list[int], bool]] = []
        for token, label in zip(ids, labels, strict=True):
            if not parts or parts[-1][1] != (label >= 0):
                parts.append(([], bool(label >= 0)))
            parts[-1][0].append(int(token))
        found.append([(tokenizer.decode(tokens), learnt) for tokens, learnt in parts])
    return found


def learnt(tokenizer: Any, row: dict[str, Any]) -> list[list[str]]:
    """The learnt parts of each text."""
    return [[part for part, is_learnt in text if is_learnt] for text in texts(tokenizer, encoded(tokenizer, row))]


def expected(family: Family, *answers: str) -> list[list[str]]:
    """The learnt parts of a chat that ends with an answer."""
    if family.rewrites:
        return [[family.learnt.format(text)] for text in answers]
    *before, last = answers
    return [[*(family.learnt.format(text) for text in before), (family.last or family.learnt).format(last)]]


SHAPES: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
    "one": ([user(), answer("Apple.")], ("Apple.",)),
    "several": ([user(), answer("Apple."), user("A tree?"), answer("Oak.")], ("Apple.", "Oak.")),
    "system": ([SYSTEM, user(), answer("Apple.")], ("Apple.",)),
    "weight": ([user(), answer("WRONG", weight=0), user("No."), answer("Oak.")], ("Oak.",)),
    "empty_calls": ([user(), answer("Apple.", tool_calls=[])], ("Apple.",)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_are_learnt(tokenizers: dict[str, Any], name: str, shape: str) -> None:
    if name not in tokenizers:
        pytest.skip("this version of TRL does not ship it")
    family, (messages, answers) = FAMILIES[name], SHAPES[shape]
    if shape in family.refuses:
        with pytest.raises(DataError, match="row 1: the chat template of the model rejects it"):
            encoded(tokenizers[name], {"messages": messages})
        return
    assert learnt(tokenizers[name], {"messages": messages}) == expected(family, *answers)
    for text in texts(tokenizers[name], encoded(tokenizers[name], {"messages": messages})):
        before = [part for (part, _), (_, is_learnt) in itertools.pairwise(text) if is_learnt]
        assert all(part.endswith(family.prompt) for part in before)
        if shape == "system":
            assert "Be brief." in text[0][0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_chat_may_end_with_the_user(tokenizers: dict[str, Any], name: str) -> None:
    if name not in tokenizers:
        pytest.skip("this version of TRL does not ship it")
    family = FAMILIES[name]
    row = {"messages": [user(), answer("Apple."), user("Thanks.")]}
    wanted = family.learnt.format("Apple.")
    assert learnt(tokenizers[name], row) in ([[wanted]], [[(family.last or wanted).format("Apple.")]])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_chat_may_begin_with_the_assistant(tokenizers: dict[str, Any], name: str) -> None:
    if name not in tokenizers:
        pytest.skip("this version of TRL does not ship it")
    row = {"messages": [answer("Welcome."), user(), answer("Apple.")]}
    if "first" in FAMILIES[name].refuses:
        with pytest.raises(DataError, match="row 1: the chat template of the model rejects it"):
            encoded(tokenizers[name], row)
        return
    found = [part for text in learnt(tokenizers[name], row) for part in text]
    assert len(found) == 2
    assert found[1] == (FAMILIES[name].last or FAMILIES[name].learnt).format("Apple.")
    greeting = FAMILIES[name].learnt.format("Welcome.")
    begin, end = found[0].split("Welcome.")
    assert greeting.endswith(end)
    assert not begin.strip() or begin.strip() in greeting, "nothing of the template's head"


@pytest.mark.parametrize("name", FAMILIES)
def test_thoughts_are_learnt_or_counted(tokenizers: dict[str, Any], name: str) -> None:
    if name not in tokenizers:
        pytest.skip("this version of TRL does not ship it")
    family, row = FAMILIES[name], {"messages": [user(), answer("Apple.", reasoning_content="Red.")]}
    examples = encoded(tokenizers[name], row)
    assert learnt(tokenizers[name], row) == [[(family.thought or family.last or family.learnt).format("Apple.")]]
    note = "1 of 1 training rows: the chat template of the model does not write the reasoning of an answer"
    assert list(examples.notes("training", 100_000)) == ([] if family.thought else [note])


def with_tools(*results: str) -> dict[str, Any]:
    calls = [call("Oslo", f"call_{index}") for index, _ in enumerate(results)]
    answers = [result(text, f"call_{index}") for index, text in enumerate(results)]
    return {"messages": [user(), answer(None, tool_calls=calls), *answers, answer("Sunny.")], "tools": [TOOL]}


@pytest.mark.parametrize("shape", ["tools", "parallel"])
@pytest.mark.parametrize("name", FAMILIES)
def test_calls_are_learnt(tokenizers: dict[str, Any], name: str, shape: str) -> None:
    if name not in tokenizers:
        pytest.skip("this version of TRL does not ship it")
    family, tokenizer = FAMILIES[name], tokenizers[name]
    row = with_tools(*(["sun"] if shape == "tools" else ["sun", "drizzle"]))
    if shape in family.refuses:
        with pytest.raises(DataError, match="row 1: the chat template of the model rejects it"):
            encoded(tokenizer, row)
        return
    examples = encoded(tokenizer, row)
    called, last = (part for text in learnt(tokenizer, row) for part in text)
    for call_id in ("call_0", "call_1"):
        called = called.replace(_short(call_id), "ID")
    repeated = family.between.join([family.call] * (1 if shape == "tools" else 2))
    assert repeated.replace("[TOOL_CALLS] [{", "{").replace("<|tool_call|>[{", "{") in called.replace(
        "[TOOL_CALLS] [{", "{"
    ).replace("<|tool_call|>[{", "{")
    assert family.call in called
    assert last == (family.last or family.learnt).format("Sunny.")
    whole = "".join(part for part, _ in texts(tokenizer, examples)[-1])
    assert "Tells the weather." in whole
    assert "sun" in whole
    assert ("drizzle" in whole) == (shape == "parallel")
    assert not examples.unwritten


def _short(call_id: str) -> str:
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]


# The text of inference


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_is_the_one_of_inference(tokenizers: dict[str, Any], name: str) -> None:
    if name not in tokenizers:
        pytest.skip("this version of TRL does not ship it")
    prompts = PromptBuilder(tokenizers[name], None)
    for row in ({"messages": SHAPES["several"][0]}, with_tools("sun")):
        tools = tuple(row.get("tools", ()))
        choice = ToolChoice(tools, forced=False, name=None, parallel=True) if tools else None
        prompt = prompts.tokens(row["messages"][:-1], choice)
        ids = [int(token) for token in encoded(tokenizers[name], row).input_ids[-1]]
        assert ids[: len(prompt)] == prompt
        assert tokenizers[name].decode(prompt).endswith(FAMILIES[name].prompt) or tools


@pytest.mark.parametrize("variables", [None, {"enable_thinking": False}])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_forced_call_continues_the_text_of_training(
    tokenizers: dict[str, Any], name: str, variables: dict[str, Any] | None
) -> None:
    """Also in words, where the template begins an answer with a mark, such as the end of an empty thought."""
    if name not in tokenizers:
        pytest.skip("this version of TRL does not ship it")
    tokenizer, row = tokenizers[name], with_tools("sun")
    if variables:
        row |= {"chat_template_kwargs": variables}
    prompts = PromptBuilder(tokenizer, None)
    forced = ToolChoice((TOOL,), forced=True, name="weather", parallel=False)
    trained = "".join(part for part, _ in texts(tokenizer, encoded(tokenizer, row))[0])
    prompt = tokenizer.decode(prompts.tokens(row["messages"][:1], forced, variables))
    assert trained.startswith(prompt)
    parser = ToolCallParser("a", prompts.call_format, True)
    found = [part for part in parser.push(trained.removeprefix(prompt)) if isinstance(part, CallDelta)]
    assert found[0].name == "weather"
    assert json.loads("".join(part.arguments for part in found)) == {"city": "Oslo"}


@pytest.mark.parametrize("variables", [None, {"enable_thinking": False}])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_constrained_answer_continues_the_text_of_training(
    tokenizers: dict[str, Any], name: str, variables: dict[str, Any] | None
) -> None:
    """A grammar has no place for the marks that begin an answer."""
    if name not in tokenizers:
        pytest.skip("this version of TRL does not ship it")
    tokenizer, row = tokenizers[name], {"messages": [user(), answer('{"fruit": "apple"}')]}
    if variables:
        row |= {"chat_template_kwargs": variables}
    trained = "".join(part for part, _ in texts(tokenizer, encoded(tokenizer, row))[0])
    prompts = PromptBuilder(tokenizer, None)
    prompt = tokenizer.decode(prompts.tokens(row["messages"][:1], None, variables, constrained=True))
    assert trained.startswith(prompt)
    assert trained.removeprefix(prompt).lstrip(" ").startswith('{"fruit": "apple"}')
    free = prompts.tokens(row["messages"][:1], None, variables)
    assert tokenizer.decode(free).endswith(FAMILIES[name].prompt) or variables


WORDS = st.text(alphabet="abcdefgh é", min_size=1, max_size=8).map(lambda text: f"x{text}y")
TURN = st.tuples(WORDS, WORDS, st.sampled_from([0, 1]))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(TURN, min_size=1, max_size=4), system=st.one_of(st.none(), WORDS), data=st.data())
def test_all_of_the_answers_is_learnt_and_nothing_else(
    tokenizers: dict[str, Any], turns: list[tuple[str, str, int]], system: str | None, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(set(FAMILIES) & set(tokenizers))))
    family = FAMILIES[name]
    turns = [*turns[:-1], (*turns[-1][:2], 1)]
    messages = [message for asked, said, weight in turns for message in (user(asked), answer(said, weight=weight))]
    if system and "system" not in family.refuses:
        messages = [{"role": "system", "content": system}, *messages]
    answers = [said for _, said, weight in turns if weight]
    found = learnt(tokenizers[name], {"messages": messages})
    if name == "mistral_v0_3" and system:  # it moves the system text to the last message of the user
        assert found == [[family.learnt.format(text)] for text in answers]
    else:
        assert found == expected(family, *answers)


def test_a_moved_system_text_is_not_lost(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["mistral_v0_3"]
    [text] = texts(tokenizer, encoded(tokenizer, {"messages": [SYSTEM, user(), answer("Apple.")]}))
    assert text == [("<bos>[INST] Be brief.\n\nName a fruit.[/INST]", False), (" Apple.<eos>", True)]


def test_a_default_system_prompt_is_not_learnt(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["qwen2_5"]
    [text] = texts(tokenizer, encoded(tokenizer, {"messages": [answer("Welcome."), user(), answer("Apple.")]}))
    assert text[0][0].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert [part for part, is_learnt in text if is_learnt] == ["Welcome.<|im_end|>\n", "Apple.<|im_end|>\n"]


def test_options_of_the_template_in_a_row(tokenizers: dict[str, Any]) -> None:
    row = {"messages": [user(), answer("Apple.")], "chat_template_kwargs": {"enable_thinking": False}}
    [text] = texts(tokenizers["qwen3"], encoded(tokenizers["qwen3"], row))
    assert text[0][0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert text[1] == ("Apple.<|im_end|>\n", True)


def test_every_token_may_be_learnt_but_those_of_weight_0(tokenizers: dict[str, Any]) -> None:
    examples = encoded(tokenizers["qwen2_5"], {"messages": SHAPES["weight"][0]}, answers_only=False)
    [text] = texts(tokenizers["qwen2_5"], examples)
    assert [part for part, is_learnt in text if not is_learnt] == ["WRONG<|im_end|>\n"]


def test_the_date_is_that_of_the_run(tokenizers: dict[str, Any]) -> None:
    row = {"messages": [user(), answer("Apple.")]}
    for name, written in {"llama3_2": "09 May 2025", "smollm3": "09 May 2025", "granite": "May 09, 2025"}.items():
        [text] = texts(tokenizers[name], encoded(tokenizers[name], row, date=datetime(2025, 5, 9)))
        assert written in text[0][0]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_what_is_learnt_is_said(tokenizers: dict[str, Any], name: str) -> None:
    examples = encoded(tokenizers[name], {"messages": SHAPES["weight"][0]})
    assert examples.learns() == (
        "Learnt: 1 answer in 1 row, with what ends them. Not learnt: other messages; 1 answer with the weight 0."
    )


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"input_ids": [5, 6]}, "Learnt: every token of 1 row."),
        ({"input_ids": [5, 6], "labels": [-100, 6]}, "Learnt: every token of 1 row, except those with the label -100."),
    ],
)
def test_what_is_learnt_of_tokens(tokenizers: dict[str, Any], row: dict[str, Any], sentence: str) -> None:
    examples = encode([row], tokenizers["qwen2_5"], answers_only=False, max_length=100)
    assert examples.learns() == sentence
    [labels] = examples.labels
    assert labels.tolist() == row.get("labels", row["input_ids"])


def test_rows_without_labels_are_not_called_too_long(tokenizers: dict[str, Any]) -> None:
    row = {"input_ids": [5, 6, 7, 8]}
    late, no_labels = [-100, -100, -100, 8], [-100] * 4
    only_first = [5, -100, -100, -100]  # no position predicts the first token
    rows = [row, row | {"labels": late}, row | {"labels": no_labels}, row | {"labels": only_first}]
    examples = encode(rows, tokenizers["qwen2_5"], answers_only=False, max_length=3)
    assert list(examples.notes("training", 3)) == [
        "4 of 4 training rows are longer than 3 tokens (max_length) and are cut",
        "2 of 4 training rows are left out: none of their tokens is learnt",
        "1 of 4 training rows are left out: their answers start after max_length",
    ]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"input_ids": [5, 6], "labels": [-100, -100]}, "no token after the first has a label other than -100"),
        ({"input_ids": [5, 6], "labels": [5, -100]}, "no token after the first has a label other than -100"),
        ({"input_ids": [5]}, "each has a single token"),
        ({"input_ids": [5, 6, 7, 8], "labels": [-100, -100, -100, 8]}, "increase max_length"),
    ],
)
def test_rows_of_which_nothing_is_learnt(tokenizers: dict[str, Any], row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        encode([row], tokenizers["qwen2_5"], answers_only=False, max_length=3)


# Plain text


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("An apple.", "An apple.<eos>"),
        ("An apple.<eos>", "An apple.<eos>"),
        ("An apple.<eos>\n", "An apple.<eos>\n"),
        ("<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>user\nHi<|im_end|>\n"),
    ],
)
def test_a_text_has_one_beginning_and_one_end(adds_bos: bool, text: str, wanted: str) -> None:
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415 - slow to import

    tokenizer = tokenizer_with(CHATML_TEMPLATE)
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])
    bos = "<bos>" if adds_bos else ""
    for source in (text, bos + text):
        [ids] = encode([{"text": source}], tokenizer, answers_only=False, max_length=100).input_ids
        assert tokenizer.decode(ids) == bos + wanted
