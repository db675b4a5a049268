"""llama.cpp's own server, as a peer for benchmarks; prints its address and serves until stdin ends.

    python -m tests.benchmarks.llama_server BASE [ADAPTER]

Both are GGUF files. The adapter is loaded and applied by requests that ask for it.
"""

from __future__ import annotations

import sys

import xllamacpp


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel, params.verbosity = 8 * 1536, 8, 0
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in sys.argv[2:]]
    params.lora_init_without_apply = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
