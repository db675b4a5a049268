"""Requests of this process to the Hugging Face hub: to load a model, and none after that.

The libraries ask the hub again at unexpected places. PEFT, for example, looks for the base model's
`config.json` at each save: behind a firewall that drops packets, every checkpoint took 10 s more.
"""

from __future__ import annotations

import os
from collections.abc import Callable

#: Seconds that the hub has to answer before a model that is in the cache is loaded from there; the
#: library tries twice. It would wait for each of a dozen files.
PROBE_SECONDS = 5.0


def use_cache_if_unreachable(model: str, report: Callable[[str], None]) -> None:
    """Forbid further requests if `model` is in the cache and the hub does not answer.

    Anything but the id of a model of the hub is ignored.
    """
    import huggingface_hub  # noqa: PLC0415 - slow to import, and not needed in the server
    from huggingface_hub import constants  # noqa: PLC0415 - as above
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415 - as above

    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # transformers would ask a bot to convert the model
    try:
        cached = huggingface_hub.try_to_load_from_cache(model, "config.json")
    except HFValidationError:  # a folder
        return
    if not isinstance(cached, str) or constants.HF_HUB_OFFLINE:
        return
    try:
        url = huggingface_hub.hf_hub_url(model, "config.json")
        huggingface_hub.get_hf_file_metadata(url, timeout=PROBE_SECONDS)
    except HfHubHTTPError:  # it answers; the libraries have better messages for this
        return
    except Exception:  # noqa: BLE001 - one of many kinds of network errors
        report(f"The Hugging Face hub cannot be reached: loading {model} from the cache")
        forbid_requests()


def forbid_requests() -> None:
    """Let every further request of the libraries fail at once, without using the network."""
    from huggingface_hub import constants  # noqa: PLC0415 - as above

    constants.HF_HUB_OFFLINE = True
