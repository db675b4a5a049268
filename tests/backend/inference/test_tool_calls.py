from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkor.backend.compute.tool_call_format import DEFAULT_FORMAT, ToolCallFormat, detect_format, write_in_words
from arkor.backend.inference.generator import ModelGenerator
from arkor.backend.inference.grammar import GrammarCompiler
from arkor.backend.inference.messages import CallDelta, CompletionRequest, Delta, Done, Reply, ToolChoice
from arkor.backend.inference.tool_calls.grammar import call_constraint
from arkor.backend.inference.tool_calls.parser import ToolCallParser
from tests.backend.chat_templates import MISTRAL, trl_templates
from tests.backend.inference.test_generator import run
from tests.fakes.tiny_model import byte_tokenizer, make_base

pytestmark = pytest.mark.slow  # torch alone takes seconds to import

QUESTION = ({"role": "user", "content": "What is 1 + 2?"},)
SMALL = {"type": "integer", "minimum": 0, "maximum": 999}
NUMBERS = {"type": "object", "properties": {"a": SMALL, "b": {"$ref": "#/$defs/n"}}, "required": ["a"]}
ADD: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {**NUMBERS, "$defs": {"n": {"enum": [2, 3]}}}},
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
BOTH = (ADD, NOW)

#: Templates with tool support, each in the format of a family of models.
TURNS = "<{{ m.role }}>{{ m.content }}{{ calls }}</s>"
HEAD = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% for m in messages %}"
TAIL = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
WRITTEN = "{{ '{\"name\": \"' + c.function.name + '\", \"' + key + '\": ' + (c.function.arguments | tojson) + '}' }}"


def template(key: str, each: str, first: str = "", last: str = "", *, several: bool = True) -> str:
    refuse = "" if several else "{% if m.tool_calls | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    calls = f"{first}{{% for c in m.tool_calls %}}{each}{{% endfor %}}{last}"
    turn = f"<{{{{ m.role }}}}>{{{{ m.content }}}}{{% if m.tool_calls %}}{refuse}{calls}{{% endif %}}</s>"
    return f"{{% set key = '{key}' %}}{HEAD}{turn}{TAIL}"


TEMPLATES = {
    "tags": template("arguments", "{{ '' if loop.first else '\\n' }}<tool_call>\n" + WRITTEN + "\n</tool_call>"),
    "bare": template("parameters", WRITTEN, several=False),
    "list": template("arguments", WRITTEN + "{{ '' if loop.last else ', ' }}", "[CALLS] [", "]"),
}
DETECTED = {
    "tags": ToolCallFormat("<tool_call>\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n"),
    "bare": ToolCallFormat("", "", None, "parameters"),
    "list": ToolCallFormat("[CALLS] [", "]", ", "),
}


def renderer(chat_template: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template

    def render(messages: Any, tools: Any = None, add_generation_prompt: bool = True) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        )

    return render


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_format_is_detected_from_the_template(name: str) -> None:
    assert detect_format(renderer(TEMPLATES[name]), ["</s>"]) == DETECTED[name]


@pytest.mark.parametrize(
    "chat_template",
    [
        byte_tokenizer().chat_template,
        HEAD + "<{{ m.role }}>{{ m.content }}</s>" + TAIL,  # lists the tools, but cannot render a call
        HEAD + "{{ m.content }}{% for c in m.tool_calls or [] %}<f={{ c.function.name }}>{% endfor %}" + TAIL,
    ],
)
def test_templates_without_json_calls_use_the_default_format(chat_template: str) -> None:
    assert detect_format(renderer(chat_template), ["</s>"]) == DEFAULT_FORMAT


def test_a_conversation_in_the_default_format() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    results = [{"role": "tool", "tool_call_id": str(number), "content": f"r{number}"} for number in (1, 2)]
    messages = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [call, call]}, *results]
    system, question, called, result = write_in_words(messages, ToolChoice(BOTH, True, "add", False).callable)
    assert '"name": "add"' in system["content"]
    assert '"now"' not in system["content"]  # it may not be called
    assert question == QUESTION[0]
    assert called["content"].count('{"name": "add", "arguments": {"a": 1}}') == 2
    assert result["role"] == "user"
    assert result["content"].index("r1") < result["content"].index("r2")


# Grammar


def accepts(tool_choice: ToolChoice, call_format: ToolCallFormat, text: str) -> bool:
    """Whether the grammar accepts the text."""
    grammars = GrammarCompiler(byte_tokenizer(), 257, [256])
    matcher = grammars.matcher(call_constraint(tool_choice, call_format, lambda _: None)).matcher
    return matcher.try_consume_tokens(list(byte_tokenizer()(text).input_ids)) == len(text) and matcher.is_accepting()


FREE = ToolChoice(BOTH, forced=False, name=None, parallel=True)


def written(name: str, *calls: str) -> str:
    call_format = DETECTED[name]
    return call_format.opening + (call_format.between or "").join(calls) + call_format.closing


@pytest.mark.parametrize("name", TEMPLATES)
def test_optional_calls_are_well_formed(name: str) -> None:
    key = DETECTED[name].arguments
    good, other = f'{{"name": "add", "{key}": {{"a": 1}}}}', f'{{"name": "now", "{key}": {{}}}}'
    assert accepts(FREE, DETECTED[name], "no call")
    assert accepts(FREE, DETECTED[name], written(name, good))
    assert accepts(FREE, DETECTED[name], ("" if name == "bare" else "Well: ") + written(name, other))
    for bad in (
        good.replace("add", "sub"),
        good.replace(": 1", ': "1"'),
        good.replace('"a": 1', '"a": 1, "b": 4'),
        good[:-1],
    ):
        assert not accepts(FREE, DETECTED[name], written(name, bad))
    if name != "bare":
        assert accepts(FREE, DETECTED[name], written(name, good, other))
        assert not accepts(ToolChoice(BOTH, False, None, parallel=False), DETECTED[name], written(name, good, other))


def test_calls_with_ids() -> None:
    """Mistral's template writes an id of nine characters into each call."""
    call_format = detect_format(renderer(MISTRAL), ["</s>"])
    assert (call_format.opening, call_format.closing, call_format.before_id) == ("[TOOL_CALLS] [", "]", ', "id": "')
    called = '{"name": "add", "arguments": {"a": 1}, "id": "%s"}'
    assert accepts(FREE, call_format, f"[TOOL_CALLS] [{called % 'abcdefgh1'}, {called % '123456789'}]")
    assert accepts(FREE, call_format, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]')
    assert not accepts(FREE, call_format, f"[TOOL_CALLS] [{called % 'abc'}]")


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5"])
def test_the_empty_thoughts_of_a_template_are_no_part_of_the_opening(name: str) -> None:
    found = detect_format(renderer(trl_templates()[name]), ["<|im_end|>"])
    assert (found.opening, found.lead) == ("<tool_call>\n", "<think>\n\n</think>\n\n" if name == "qwen3" else "")


def test_parameters_with_all_of() -> None:
    parts = [{"properties": {name: {"type": "integer"}}, "required": [name]} for name in "ab"]
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "allOf": parts}}}
    tool_choice = ToolChoice((tool,), forced=False, name=None, parallel=False)
    call = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
    assert accepts(tool_choice, DEFAULT_FORMAT, f"<tool_call>\n{call}\n</tool_call>")
    assert not accepts(tool_choice, DEFAULT_FORMAT, "<tool_call>\n" + call.replace(', "b": 2', "") + "\n</tool_call>")


# Parser


def read(call_format: ToolCallFormat, pieces: list[str], *, tool_choice: bool) -> tuple[str, dict[int, list[Any]]]:
    reader = ToolCallParser("q", call_format, tool_choice)
    text, calls = "", {}
    for piece in [part for push in pieces for part in reader.push(push)] + reader.flush():
        if isinstance(piece, Delta):
            text += piece.text
        elif piece.name:
            calls[piece.index] = [piece.name, piece.arguments]
        else:
            calls[piece.index][1] += piece.arguments
    return text, calls


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(sorted(TEMPLATES)), st.lists(st.dictionaries(st.text(max_size=3), JSON), max_size=3), st.data())
def test_calls_are_parsed_however_the_text_is_split(name: str, arguments: list[Any], data: st.DataObject) -> None:
    call_format = DETECTED[name]
    arguments = arguments[:1] if call_format.between is None else arguments
    calls = [f'{{"name": "f{n}", "{call_format.arguments}": {json.dumps(one)}}}' for n, one in enumerate(arguments)]
    before = data.draw(st.sampled_from(["", "Let me see <tool", "[CALLS"])) if name != "bare" or not calls else ""
    whole = before + (written(name, *calls) if calls else "")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    text, found = read(call_format, pieces, tool_choice=False)
    assert text == before
    assert [(call[0], json.loads(call[1])) for call in found.values()] == [
        (f"f{n}", a) for n, a in enumerate(arguments)
    ]


# With a model


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An untrained model for every template, and for one whose calls start with a single letter."""
    root = tmp_path_factory.mktemp("bases")
    found = {"plain": make_base(root / "plain", context=2048)}
    short = template("arguments", "@" + WRITTEN + "@")
    for name, chat_template in {**TEMPLATES, "short": short}.items():
        found[name] = make_base(root / name, context=2048)
        (Path(found[name]) / "chat_template.jinja").write_text(chat_template)
    return found


def answered(base: str, home: Path, **more: Any) -> list[Reply]:
    generator = ModelGenerator(home)
    generator.submit(CompletionRequest("q", base, None, QUESTION, **{"max_tokens": 700, **more}))
    return run(generator)["q"]


def calls_of(replies: list[Reply]) -> list[tuple[str, Any]]:
    assert isinstance(replies[-1], Done), replies[-1]
    found: dict[int, list[str]] = {}
    for reply in replies:
        if isinstance(reply, CallDelta):
            found.setdefault(reply.index, [reply.name or "", ""])[1] += reply.arguments
    return [(name, json.loads(arguments)) for name, arguments in found.values()]


@pytest.mark.parametrize("name", ["plain", *TEMPLATES])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_forced_calls_match_their_schema(bases: dict[str, str], tmp_path: Path, name: str, temperature: float) -> None:
    for chosen, several in (("add", False), (None, True)):
        replies = answered(
            bases[name], tmp_path, tool_choice=ToolChoice(BOTH, True, chosen, several), temperature=temperature
        )
        assert isinstance(replies[-1], Done)
        assert replies[-1].finish_reason == "tool_calls"
        assert not [reply for reply in replies if isinstance(reply, Delta)]
        for called, arguments in calls_of(replies):
            assert called == chosen if chosen else called in ("add", "now")
            assert called == "now" or isinstance(arguments["a"], int)
            assert arguments.get("b", 2) in (2, 3)


@pytest.mark.usefixtures("engine")
def test_optional_calls_of_a_model(bases: dict[str, str], tmp_path: Path) -> None:
    """At a temperature at which all tokens are equally likely."""
    tool_choice = ToolChoice((NOW,), forced=False, name=None, parallel=False)
    seen = set()
    for seed in range(8):
        replies = answered(
            bases["short"], tmp_path, tool_choice=tool_choice, temperature=1e6, seed=seed, max_tokens=900
        )
        done = replies[-1]
        assert isinstance(done, Done)
        text = "".join(reply.text for reply in replies if isinstance(reply, Delta))
        assert "@" not in text
        assert '"name"' not in text
        if done.finish_reason == "tool_calls":
            assert calls_of(replies) == [("now", {})]
        seen.add(done.finish_reason)
    assert "tool_calls" in seen


@pytest.mark.usefixtures("engine")
def test_a_template_without_tools_can_choose(bases: dict[str, str], tmp_path: Path) -> None:
    """The tools are described in words, and an untrained model answers with text."""
    replies = answered(bases["plain"], tmp_path, tool_choice=FREE, max_tokens=5)
    assert isinstance(replies[-1], Done), replies[-1]
