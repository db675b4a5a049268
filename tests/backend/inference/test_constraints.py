from __future__ import annotations

import json
import re
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from arkor.backend.inference.constraints import WHITESPACE, parse_constraint
from arkor.backend.inference.generator import ModelGenerator
from arkor.backend.inference.messages import CompletionRequest, Constraint, Delta, Done, Failed, Reply
from arkor.protocol.chat import InferenceRequest
from tests.backend.inference.test_generator import run
from tests.fakes.tiny_model import make_base

pytestmark = pytest.mark.slow  # torch alone takes seconds to import

QUESTION = ({"role": "user", "content": "Answer."},)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("base"), context=2048)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> ModelGenerator:
    return ModelGenerator(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def each_generator(tmp_path_factory: pytest.TempPathFactory, engine: str) -> ModelGenerator:
    """The same with each engine, for the tests in which the model matters and not the grammar alone."""
    return ModelGenerator(tmp_path_factory.mktemp("home"))


def structured(**fields: Any) -> Constraint:
    constraint = parse_constraint(InferenceRequest(QUESTION, base_model="any", structured_outputs=fields))
    assert constraint is not None
    return constraint


def answers(generator: ModelGenerator, base: str, constraints: list[Constraint], **more: Any) -> list[list[Reply]]:
    """Generate all completions concurrently, at temperature 2 by default; return their replies."""
    wish = {"temperature": 2.0, "max_tokens": 600, **more}
    for number, constraint in enumerate(constraints):
        generator.submit(CompletionRequest(str(number), base, None, QUESTION, constraint=constraint, **wish))
    replies = run(generator)
    return [replies[str(number)] for number in range(len(constraints))]


def whole(replies: list[Reply]) -> str | None:
    """Return the text of an answer, None if it reached `max_tokens`."""
    done = replies[-1]
    assert isinstance(done, Done), done
    text = "".join(reply.text for reply in replies if isinstance(reply, Delta))
    return text if done.finish_reason == "stop" else None


# Any schema

NAMES = st.sampled_from(["a", "b", "long name", "ü", "x-1"])
SCALARS = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.lists(st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(max_size=4)), min_size=1, max_size=4)
    .filter(lambda values: len({json.dumps(value) for value in values}) == len(values))
    .map(lambda values: {"enum": values}),
    st.text(max_size=6).map(lambda value: {"const": value}),
    st.tuples(st.sampled_from(["integer", "number"]), st.integers(-50, 50), st.integers(0, 99)).map(
        lambda drawn: {"type": drawn[0], "minimum": drawn[1], "maximum": drawn[1] + drawn[2]}
    ),
    st.tuples(st.integers(-5, 5), st.integers(1, 40)).map(
        lambda drawn: {"type": "integer", "exclusiveMinimum": drawn[0], "exclusiveMaximum": drawn[0] + 1 + drawn[1]}
    ),
    st.tuples(st.integers(0, 3), st.integers(0, 8)).map(
        lambda drawn: {"type": "string", "minLength": drawn[0], "maxLength": drawn[0] + drawn[1]}
    ),
    st.sampled_from([r"^[a-z]{2,5}$", r"^(yes|no)$", r"^\d{3}-\d{2}$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.sampled_from(["date", "time", "date-time", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
    st.tuples(st.integers(2, 9), st.integers(10, 90)).map(
        lambda drawn: {"type": "integer", "multipleOf": drawn[0], "minimum": 0, "maximum": drawn[1]}
    ),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(drawn: tuple[dict[str, Any], Any, Any]) -> dict[str, Any]:
        properties, required, others = drawn
        schema = {"type": "object", "properties": properties, "additionalProperties": others}
        if others is not False:  # otherwise an object would rarely end
            return {**schema, "maxProperties": 6, "required": sorted(properties)}
        return {**schema, "required": sorted(name for name in properties if name in required)}

    return st.tuples(
        st.dictionaries(NAMES, inner, max_size=3), st.sets(NAMES), st.sampled_from([False, {"type": "null"}])
    ).map(build)


def lists(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda drawn: {"type": "array", "items": drawn[0], "minItems": drawn[1], "maxItems": drawn[1] + drawn[2]}
        ),
        st.lists(inner, min_size=1, max_size=2).map(
            lambda parts: {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
        ),
    )


def several(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"allOf": parts}),
        st.lists(inner, min_size=2, max_size=2).map(lambda parts: {"oneOf": parts}),
        inner.map(
            lambda part: {"$defs": {"it": part}, "type": "array", "items": {"$ref": "#/$defs/it"}, "maxItems": 2}
        ),
    )


def no_inner_defs(schema: Any) -> bool:
    return "$ref" not in json.dumps(schema) or ("$defs" in schema and json.dumps(schema).count("$defs") == 2)


SCHEMAS = st.recursive(
    SCALARS, lambda inner: st.one_of(objects(inner), lists(inner), several(inner)), max_leaves=5
).filter(no_inner_defs)


@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
@given(schemas=st.lists(SCHEMAS, min_size=6, max_size=8))
def test_answers_match_their_schema(generator: ModelGenerator, base: str, schemas: list[Any]) -> None:
    """At temperature 2, with an untrained model; schemas that cannot be enforced are rejected."""
    constraints = [Constraint("json", schema, "schema", WHITESPACE) for schema in schemas]
    for schema, replies in zip(schemas, answers(generator, base, constraints), strict=True):
        if isinstance(replies[-1], Failed):
            assert (replies[-1].status, replies[-1].code) == (400, "invalid_schema"), replies[-1]
            assert may_be_refused(schema), (schema, replies[-1])
            continue
        text = whole(replies)
        if text is not None:
            jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
        SEEN.append(text is not None)


#: Whether each answer was complete.
SEEN: list[bool] = []


def may_be_refused(schema: Any) -> bool:
    """Whether a schema may be unsatisfiable, or beyond the known limits of llguidance."""
    return any(word in json.dumps(schema) for word in ("allOf", "oneOf", "multipleOf"))


def test_nearly_all_answers_were_complete() -> None:
    if SEEN:  # empty if the test above was deselected
        assert len(SEEN) > 40
        assert sum(SEEN) > 0.8 * len(SEEN)


# The other kinds


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": r"\d{3}-[a-f]{2,4}"}, r"[0-9]{3}-[a-f]{2,4}"),
        ({"regex": r"[^\W_]{3}[\d+]\\d\W"}, r"[0-9A-Za-z]{3}[0-9+]\\d[^0-9A-Za-z_]"),
        ({"regex": r"^(äöü|😀){1,3}$"}, r"(äöü|😀){1,3}"),
        ({"choice": ["yes", "no", 'quo"te\\ \n/', "😀"]}, 'yes|no|quo"te\\\\ \\n/|😀'),
        ({"choice": ["a", "ab", "abc"]}, "a|ab|abc"),
        ({"grammar": 'root ::= ("ab" | "c"){1,9} "."'}, r"(ab|c){1,9}\."),
        ({"grammar": '?start: item ("," item)~0..3\nitem: /[0-9]{1,3}/'}, r"\d{1,3}(,\d{1,3}){0,3}"),
        ({"json": {"enum": [1, "a", None]}}, '1|"a"|null'),
        ({"json": '{"const": "text"}'}, '"text"'),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 2.0, 100.0])
def test_every_kind_of_constraint_is_enforced(
    each_generator: ModelGenerator, base: str, constraint: dict[str, Any], pattern: str, temperature: float
) -> None:
    for replies in answers(each_generator, base, [structured(**constraint)] * 4, temperature=temperature):
        text = whole(replies)
        assert text is not None
        assert re.fullmatch(pattern, text), text


def test_an_object_without_a_schema_parses(generator: ModelGenerator, base: str) -> None:
    """An untrained model may not reach the end; complete answers are objects."""
    found = [
        whole(replies) for replies in answers(generator, base, [structured(json_object=True)] * 8, temperature=50.0)
    ]
    assert all(isinstance(json.loads(text), dict) for text in found if text is not None)
    assert any(text is not None for text in found)


TWO = {"type": "object", "properties": {"a": {"enum": [1]}, "b": {"enum": ["x"]}}, "required": ["a", "b"]}


def test_whitespace_modifiers(generator: ModelGenerator, base: str) -> None:
    closed = {"disable_additional_properties": True}
    for modifiers, pattern in (
        ({"disable_any_whitespace": True}, r'\{"a":1,"b":"x"\}'),
        ({"whitespace_pattern": r"[ \t]?"}, r'\{[ \t]?"a"[ \t]?:[ \t]?1[ \t]?,[ \t]?"b"[ \t]?:[ \t]?"x"[ \t]?\}'),
        (
            {"whitespace_pattern": r"\s{0,3}"},
            r'\{\s{0,3}"a"\s{0,3}:\s{0,3}1\s{0,3},\s{0,3}"b"\s{0,3}:\s{0,3}"x"\s{0,3}\}',
        ),
    ):
        for replies in answers(generator, base, [structured(json=TWO, **closed, **modifiers)] * 4, temperature=50.0):
            text = whole(replies)
            assert text is not None
            assert re.fullmatch(pattern, text), text


def test_max_tokens_cuts_a_constrained_answer(each_generator: ModelGenerator, base: str, engine: str) -> None:
    [replies] = answers(each_generator, base, [structured(regex="a{50}")], max_tokens=7)
    assert replies[-1] == Done("0", "length", replies[-1].prompt_tokens, 7, engine=engine)  # type: ignore[union-attr]


# Explosive grammars

EXPLOSIVE: dict[str, dict[str, Any]] = {
    "a modulus that the library counts out": {"json": {"type": "integer", "multipleOf": 9999991}},
    "thousands of properties": {"json": {"properties": {f"p{n}": {"type": "integer"} for n in range(9000)}}},
    "unions of unions": {
        "json": {"allOf": [{"anyOf": [{"properties": {f"a{n}": {"const": m}}} for m in range(8)]} for n in range(9)]}
    },
    "nothing fits": {"json": {"type": "string", "enum": [1, 2]}},
    "only itself": {"json": {"$ref": "#"}},
    "a reference to nowhere": {"json": {"$ref": "#/$defs/none"}},
    "an invalid regex": {"regex": "(["},
    "a thousand brackets": {"regex": "(" * 40_000 + "a" + ")" * 40_000},
    "looking ahead": {"regex": "(?=a)b"},
    "nothing matches": {"regex": r"[^\s\S]"},
    "an invalid grammar": {"grammar": "::= ::="},
    "brackets in a grammar": {"grammar": "root ::= " + "(" * 40_000},
    "a name that is not there": {"grammar": "start: other"},
}

#: They look explosive and are easy.
HARMLESS: dict[str, dict[str, Any]] = {
    "a regex of a million": {"regex": "(a{1,1000}){1,1000}"},
    "references that double": {
        "json": {
            "$defs": {
                "d0": {"type": "null"},
                **{f"d{n + 1}": {"anyOf": [{"$ref": f"#/$defs/d{n}"}] * 2} for n in range(30)},
            },
            "$ref": "#/$defs/d30",
        }
    },
    "a list of many": {"json": {"type": "array", "items": {"enum": [1]}, "minItems": 10**6}},
}


@pytest.mark.parametrize("name", [*EXPLOSIVE, *HARMLESS])
def test_explosive_grammars_are_rejected_without_affecting_other_answers(
    generator: ModelGenerator, base: str, name: str
) -> None:
    generator.submit(
        CompletionRequest("other", base, None, QUESTION, max_tokens=2000, constraint=structured(regex="a{1500}"))
    )
    while not generator.step():
        pass
    constraint = structured(**{**EXPLOSIVE, **HARMLESS}[name])
    began = time.process_time()
    generator.submit(CompletionRequest("q", base, None, QUESTION, max_tokens=3, constraint=constraint))
    replies: dict[str, list[Reply]] = {"q": [], "other": []}
    while not replies["q"] or isinstance(replies["q"][-1], Delta):
        for reply in generator.step():
            replies[reply.id].append(reply)
    generator.cancel("other")
    last = replies["q"][-1]
    assert replies["other"]
    assert all(isinstance(reply, Delta) for reply in replies["other"])
    if name in HARMLESS:
        assert isinstance(last, Done)
    else:
        assert isinstance(last, Failed)
        assert last.status == 400
        assert last.sentence.startswith("structured_outputs.")
        assert len(last.sentence) < 500
    assert time.process_time() - began < 10


# A schema in a system message


def json_object(*texts: str, role: str = "system") -> Constraint:
    messages = [{"role": role, "content": text} for text in texts]
    request = InferenceRequest([*messages, *QUESTION], base_model="any", response_format={"type": "json_object"})
    constraint = parse_constraint(request)
    assert constraint is not None
    return constraint


def test_a_json_object_follows_the_schema_in_a_system_message(generator: ModelGenerator, base: str) -> None:
    """As pydantic-ai's `PromptedOutput` sends it: a small model would repeat the schema."""
    example = {"type": "object", "properties": {"foo": {"type": "array"}}}
    closed = {**TWO, "additionalProperties": False}
    text = f"Like {json.dumps(example)}.\n\nAlways respond with JSON of this schema:\n\n{json.dumps(closed)}\n\nNo fencing."
    constraint = json_object("Sort the ticket. {}", text)
    assert (constraint.value, constraint.prompted) == (closed, True)
    for replies in answers(generator, base, [constraint] * 3):
        jsonschema.validate(json.loads(whole(replies) or ""), closed)
        done = replies[-1]
        assert isinstance(done, Done)
        assert done.notes == ("The answer follows the JSON schema in the system message.",)


@pytest.mark.parametrize(
    ("text", "role"),
    [
        (json.dumps(TWO), "user"),
        (json.dumps(TWO), "assistant"),
        ('{"type": "object"}', "system"),
        ('{"type": "object", "properties": {}}', "system"),
        ('{"properties": {"a": {"type": "string"}}}', "system"),
        ('{"type": "object", "properties": {"a": {"type": "strange"}}}', "system"),
        ('{"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/a"}}}', "system"),
        (json.dumps(TWO)[:-1], "system"),
        ("{" * 50_000, "system"),
        ('{"a":' * 10_000, "system"),
        (f"{json.dumps(TWO)}{' ' * 100_000}", "system"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_schema_of_the_answer(text: str, role: str) -> None:
    began = time.monotonic()
    constraint = json_object(text, role=role)
    assert time.monotonic() - began < 1
    assert (constraint.value, constraint.prompted) == ({"type": "object"}, False)


def test_a_schema_that_cannot_be_compiled_is_dropped(generator: ModelGenerator, base: str) -> None:
    impossible = {"type": "object", "properties": {"a": {"type": "string", "minLength": 5, "maxLength": 2}}}
    constraint = json_object(json.dumps({**impossible, "required": ["a"]}))
    assert constraint.prompted
    [replies] = answers(generator, base, [constraint], max_tokens=20)
    assert isinstance(replies[-1], Done)
    assert replies[-1].notes == ()


def test_structured_outputs_allow_any_object() -> None:
    messages = [{"role": "system", "content": json.dumps(TWO)}, *QUESTION]
    request = InferenceRequest(messages, base_model="any", structured_outputs={"json_object": True})
    constraint = parse_constraint(request)
    assert constraint is not None
    assert constraint.value == {"type": "object"}
