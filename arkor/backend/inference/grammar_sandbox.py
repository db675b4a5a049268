"""Child process that compiles a grammar within limits; reads and writes a JSON object.

    stdin   {"kind": "json" | "regex" | "choice" | "grammar" | "lark", "value": …, "whitespace": …}
    stdout  {"grammar": …} or {"error": …}

llguidance limits most explosive grammars, but not all: those end this process instead of the one
that generates. It is run as a file and imports nothing of arkor, to start fast.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from typing import Any

#: Limits: seconds of CPU time, and bytes of memory.
CPU_SECONDS, MEMORY_BYTES = 0.5, 2 * 2**30

#: In JSON Schema these match ASCII only; llguidance matches all of Unicode.
_ASCII = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}
_ESCAPE = re.compile(r"\\.", re.DOTALL)


def to_grammar(request: dict[str, Any]) -> str:
    """Convert a request to llguidance's grammar format. Raise ValueError for an invalid one."""
    from llguidance import LLMatcher  # noqa: PLC0415 - after the limits are set

    kind, value = request["kind"], request["value"]
    if kind == "regex":
        ascii_only = _ESCAPE.sub(lambda escape: _ASCII.get(escape[0], escape[0]), value)
        return str(LLMatcher.grammar_from_regex(ascii_only))
    if kind == "json":
        pattern = request["whitespace"]
        whitespace = {"whitespace_flexible": bool(pattern), "whitespace_pattern": pattern or None}
        options = {**whitespace, "lenient": False, "coerce_one_of": False}
        return str(LLMatcher.grammar_from_json_schema(value, overrides=options))
    if kind == "choice":
        value = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in value)
    if kind == "grammar" and "::=" in value:
        from llguidance.gbnf_to_lark import any_to_lark  # noqa: PLC0415 - as above

        value = any_to_lark(value)
    return str(LLMatcher.grammar_from_lark(value))


def compile_grammar(request: dict[str, Any]) -> dict[str, str]:
    """Return the grammar, or the error of the conversion or the compiler."""
    from llguidance import LLMatcher, LLTokenizer  # noqa: PLC0415 - as above

    try:
        grammar = to_grammar(request)
    except RecursionError:
        return {"error": "is nested too deeply"}
    except Exception as error:  # noqa: BLE001 - converters raise various exceptions for invalid input
        return {"error": str(error)}
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return {"error": matcher.get_error()} if matcher.is_error() else {"grammar": grammar}


def main() -> None:
    """Set the limits, read the request and write the result."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    json.dump(compile_grammar(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
