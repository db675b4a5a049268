#!/usr/bin/env bash
# PEFT 0.21.2: `save_pretrained` asks the hub for the base model's `config.json`, at every save.
#
# With `save_embedding_layers="auto"`, the default, it compares the vocabulary of the model in memory with the one of
# the base model, whose `config.json` it looks for on the hub if the base is no local folder, even when the model is in
# the cache. So each checkpoint of a training sends the model's name out. If the hub cannot be reached, the save waits
# for the time-out (10 s where packets are dropped) and only warns. One would expect a save to need no network.
# `save_embedding_layers=False` does not ask; it is right if the embedding was not resized.
#
# Output seen on Python 3.11, torch 2.13.0 (CPU), 2026-11-30:
#   save_embedding_layers="auto": HEAD /acme/tiny/resolve/main/config.json
#   save_embedding_layers="auto": HEAD /acme/tiny/resolve/main/config.json
#   save_embedding_layers=False: no request
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
cat > "$folder/save.py" <<'PYTHON'
import http.server
import os
import tempfile
import threading

requests = []


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that has no repository, and keeps the requests for the model."""

    def do_HEAD(self):
        if "/acme/tiny/" in self.path:
            requests.append(f"{self.command} {self.path}")
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from peft import LoraConfig, get_peft_model  # after the endpoint is set
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(config)
model.name_or_path = "acme/tiny"  # as if it had been loaded from the hub
model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
for value in ("auto", "auto", False):
    requests.clear()
    model.save_pretrained(tempfile.mkdtemp(), save_embedding_layers=value)
    shown = f'"{value}"' if value else value
    print(f"save_embedding_layers={shown}: {', '.join(requests) or 'no request'}")
PYTHON
env -u HF_HUB_OFFLINE TMPDIR="$folder" "$folder/venv/bin/python" -W ignore "$folder/save.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
save_embedding_layers="auto": HEAD /acme/tiny/resolve/main/config.json
save_embedding_layers="auto": HEAD /acme/tiny/resolve/main/config.json
save_embedding_layers=False: no request
EXPECTED
