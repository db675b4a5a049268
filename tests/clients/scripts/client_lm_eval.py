"""lm-eval: a deployment by text completions and by chat completions, and the adapter folder."""

from harness import run_commands

run_commands("lm_eval")
