#!/usr/bin/env bash
# datasets 5.2.0: a column of a JSON file whose texts are all ISO dates is read as times, and an empty file is a bare
# `StopIteration`.
#
# JSON has no times: what stands in quotation marks is a text, and one would expect to get it back. The original is
# lost: "2024-01-01" and "2024-01-01T00:00:00" give the same value. One row with another text in the column changes the
# type of all of them.
#
# Output seen on Python 3.11, 2026-11-30:
#   dates: datetime.datetime(2024, 1, 1, 0, 0)
#   dates and one other text: '2024-01-01'
#   an empty file: StopIteration()
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
cat > "$folder/read.py" <<'PYTHON'
import json
from pathlib import Path

from datasets import disable_progress_bars, load_dataset

disable_progress_bars()
for name, texts in {
    "dates": ["2024-01-01", "2024-02-01"],
    "dates and one other text": ["2024-01-01", "soon"],
    "an empty file": [],
}.items():
    file = Path(f"{name}.jsonl")
    file.write_text("".join(json.dumps({"answer": text}) + "\n" for text in texts))
    try:
        found = load_dataset("json", data_files=str(file), split="train")[0]["answer"]
    except BaseException as error:
        found = error
    print(f"{name}: {found!r}")
PYTHON
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 venv/bin/python read.py 2>/dev/null | tee seen
diff seen - <<'EXPECTED'
dates: datetime.datetime(2024, 1, 1, 0, 0)
dates and one other text: '2024-01-01'
an empty file: StopIteration()
EXPECTED
