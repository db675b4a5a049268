"""The JSON schema of a class, and instances parsed from responses."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any, Literal, NamedTuple, TypedDict

import attrs
import jsonschema
import pydantic
import pytest

from arkor.client.response_format import build_response_format, parse_instance
from arkor.errors import ArkorError, InvalidConfig


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@attrs.frozen
class Address:
    street: str
    zip_code: int | None = None


@attrs.frozen
class Ticket:
    title: str
    mood: Mood
    team: Literal["billing", "tech"]
    address: Address
    tags: list[str] = attrs.field(factory=list)
    default: int = 3  # named like a keyword of JSON schema


@dataclasses.dataclass
class Leaf:
    size: float


@dataclasses.dataclass
class Branch:
    left: Branch | None = None
    leaf: Leaf | None = None


class Point(NamedTuple):
    x: int
    y: int


class Line(TypedDict):
    start: list[int]


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(description="as on the letter")
    age: int | None = None


@attrs.define
class Loose:
    scores: dict[str, int]


def schema_of(form: Any) -> dict[str, Any]:
    wanted = build_response_format(form)
    assert wanted["type"] == "json_schema"
    schema: dict[str, Any] = wanted["json_schema"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def objects_in(value: Any) -> list[dict[str, Any]]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    here = [value] if isinstance(value, dict) and isinstance(value.get("properties"), dict) else []
    return here + [found for item in inner for found in objects_in(item)]


@pytest.mark.parametrize("form", [Ticket, Address, Branch, Line, Person])
def test_every_object_is_closed_and_complete(form: Any) -> None:
    assert build_response_format(form)["json_schema"]["strict"] is True
    schema = schema_of(form)
    assert schema["type"] == "object"  # not a reference, as other backends require
    assert objects_in(schema)
    for inner in objects_in(schema):
        if "type" in inner:
            assert inner["required"] == list(inner["properties"])
            assert inner["additionalProperties"] is False


def test_defaults_are_dropped_but_not_fields_of_that_name() -> None:
    schema = schema_of(Ticket)
    assert "default" in schema["properties"]
    assert "default" not in schema["properties"]["default"]


def test_a_dict_is_not_strict() -> None:
    assert "strict" not in build_response_format(Loose)["json_schema"]
    assert parse_instance(Loose, '{"scores": {"a": 1}}') == Loose({"a": 1})


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (Ticket, Ticket("Lost", Mood.BAD, "tech", Address("Elm St", None), ["parcel"], 4)),
        (Branch, Branch(Branch(None, Leaf(1.5)))),
        (Point, Point(1, 2)),
        (Line, {"start": [1, 2]}),
        (Person, Person(name="Ada", age=36)),
        (list[Address], [Address("Elm St", 12345)]),
    ],
)
def test_a_valid_response_becomes_an_instance(form: Any, value: Any) -> None:
    text = value.model_dump_json() if isinstance(value, Person) else json.dumps(value, default=plain)
    jsonschema.validate(json.loads(text), schema_of(form))
    assert parse_instance(form, text) == value


def plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    return attrs.asdict(value) if attrs.has(type(value)) else dataclasses.asdict(value)


@pytest.mark.parametrize(
    "text", ['{"street": 7}', '{"street": "a"', "", "{}", "null", '{"street": "a", "zip_code": "b"}']
)
def test_an_invalid_response_is_reported_on_one_line(text: str) -> None:
    with pytest.raises(ArkorError, match=r"the response does not fit Address: .+") as caught:
        parse_instance(Address, text)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArkorError, match=r"the response does not fit Person: .+") as caught:
        parse_instance(Person, text)
    assert "\n" not in str(caught.value)


class Plain:
    """A class without fields."""


@dataclasses.dataclass
class Either:
    """JSON does not distinguish these two."""

    one: Leaf | Branch


@pytest.mark.parametrize("form", [Plain, Either, 3, "json", complex])
def test_a_class_without_a_json_schema_is_rejected(form: Any) -> None:
    with pytest.raises(InvalidConfig, match="response_format: must be an attrs class"):
        build_response_format(form)
