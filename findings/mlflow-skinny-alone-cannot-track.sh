#!/usr/bin/env bash
# mlflow-skinny 3.17.2: `MlflowClient()` fails after `pip install mlflow-skinny`, with a message about something else.
#
# Since runs are stored in SQLite by default, tracking needs sqlalchemy and alembic, which mlflow-skinny does not depend
# on. The message is about the model registry, names no package, and offers "file" as a supported scheme; a `file:` URI
# is refused as well. One would expect the name of the missing package, or the dependency.
#
# Output seen on Python 3.11, 2026-11-30:
#   mlflow-skinny: UnsupportedModelRegistryStoreURIException: Model registry functionality is unavailable
#   mlflow-skinny, file: MlflowException: The filesystem tracking backend (e.g., './mlruns') is in maintenance mode
#   mlflow-skinny sqlalchemy alembic: works
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet mlflow-skinny==3.17.2
cat > "$folder/track.py" <<'PYTHON'
import re
import sys

import mlflow

uri = "file:runs" if sys.argv[1].endswith("file") else None
try:
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.create_run(client.create_experiment("tried"))
    found = "works"
except Exception as error:
    found = re.split(r";| and will", f"{type(error).__name__}: {str(error).strip()}")[0]
print(f"{sys.argv[1]}: {found}")
PYTHON
cd "$folder"
{
  venv/bin/python track.py "mlflow-skinny"
  venv/bin/python track.py "mlflow-skinny, file"
  venv/bin/pip install --quiet sqlalchemy==2.1.9 alembic==1.20.0
  venv/bin/python track.py "mlflow-skinny sqlalchemy alembic"
} 2>/dev/null | tee seen
diff seen - <<'EXPECTED'
mlflow-skinny: UnsupportedModelRegistryStoreURIException: Model registry functionality is unavailable
mlflow-skinny, file: MlflowException: The filesystem tracking backend (e.g., './mlruns') is in maintenance mode
mlflow-skinny sqlalchemy alembic: works
EXPECTED
