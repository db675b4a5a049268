#!/usr/bin/env bash
# transformers 5.24.0, MambaForCausalLM: `past_key_values=` is accepted and ignored, without an error or a warning.
#
# Llama's `forward` maps the deprecated name to `cache=`. Mamba's has `cache=` too, and takes `cache_params=` as its old
# name, but `past_key_values=` ends in its `**kwargs`: the state is neither read nor written. One would expect an error,
# or the mapping that other models have. Each new token is then computed as if nothing stood before it.
#
# Output seen on Python 3.11, torch 2.13.0 (CPU), 2026-11-30:
#   cache            equals the whole sequence: True   equals the last token alone: False
#   past_key_values  equals the whole sequence: False  equals the last token alone: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
cat > "$folder/mamba.py" <<'PYTHON'
import torch
from transformers import DynamicCache, MambaConfig, MambaForCausalLM

torch.manual_seed(0)
config = MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2)
model = MambaForCausalLM(config).eval()
tokens = torch.arange(1, 9)[None]  # (batch, tokens)


def last_logits(name):
    """The logits of the last token, after the first seven went into a cache that is passed as `name`."""
    cache = DynamicCache(config=config)
    model(input_ids=tokens[:, :-1], use_cache=True, **{name: cache})
    return model(input_ids=tokens[:, -1:], use_cache=True, **{name: cache}).logits[0, -1]


with torch.no_grad():
    whole = model(input_ids=tokens).logits[0, -1]
    alone = model(input_ids=tokens[:, -1:]).logits[0, -1]
    for name in ("cache", "past_key_values"):
        logits = last_logits(name)
        same_whole, same_alone = torch.allclose(logits, whole, atol=1e-4), torch.allclose(logits, alone, atol=1e-6)
        print(f"{name:16} equals the whole sequence: {same_whole!s:6} equals the last token alone: {same_alone}")
PYTHON
"$folder/venv/bin/python" "$folder/mamba.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED'
cache            equals the whole sequence: True   equals the last token alone: False
past_key_values  equals the whole sequence: False  equals the last token alone: True
EXPECTED
