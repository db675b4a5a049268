"""A grammar tried out in a process that can be ended: text of JSON on stdin, what came of it as JSON on stdout.

    {"kind": "json" | "regex" | "choice" | "grammar" | "lark", "value": …, "whitespace": …}  →  {"grammar"} | {"error"}

Most that is built to explode meets a limit of the library's, but not all: then this process comes to its end, not the
one that answers. It is run as a file and imports nothing of arkor, to start quickly.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from typing import Any

#: What a trial may take: seconds of processor time, however busy the machine is; bytes of memory.
CPU_SECONDS, MEMORY_BYTES = 0.5, 2 * 2**30


def to_grammar(request: dict[str, Any]) -> str:
    """The library's own text for it. Raises ValueError for what is none."""
    from llguidance import LLMatcher  # noqa: PLC0415 - after the limits are set

    kind, value = request["kind"], request["value"]
    if kind == "regex":
        return str(LLMatcher.grammar_from_regex(_ESCAPE.sub(_in_ascii, value)))
    if kind == "json":
        return str(LLMatcher.grammar_from_json_schema(value, overrides=_json_options(request["whitespace"])))
    if kind == "choice":
        value = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in value)
    if kind == "grammar" and "::=" in value:
        from llguidance.gbnf_to_lark import any_to_lark  # noqa: PLC0415 - as above

        value = any_to_lark(value)
    return str(LLMatcher.grammar_from_lark(value))


#: A `pattern` of JSON Schema means ASCII by these, and so does who writes `\d`; the library would take any script's.
_ASCII = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}
_ESCAPE = re.compile(r"\\.", re.DOTALL)


def _in_ascii(escape: re.Match[str]) -> str:
    return _ASCII.get(escape[0], escape[0])


def _json_options(whitespace: str) -> dict[str, Any]:
    flexible = {"whitespace_flexible": bool(whitespace), "whitespace_pattern": whitespace or None}
    return {**flexible, "lenient": False, "coerce_one_of": False}


def compile_grammar(request: dict[str, Any]) -> dict[str, str]:
    """Its grammar if it can be compiled, else what is wrong with it."""
    from llguidance import LLMatcher, LLTokenizer  # noqa: PLC0415 - as above

    try:
        grammar = to_grammar(request)
    except RecursionError:
        return {"error": "is nested too deep"}
    except Exception as error:  # noqa: BLE001 - a converter raises what it likes; it is all about the input
        return {"error": str(error)}
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return {"error": matcher.get_error()} if matcher.is_error() else {"grammar": grammar}


def main() -> None:
    """Read, try, write."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # whose signal ends the process
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    json.dump(compile_grammar(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
