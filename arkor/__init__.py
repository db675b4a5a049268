"""Fine-tune open-weight language models from plain, blocking Python.

    trainer = Trainer(name=…, model=…, dataset=…, callbacks={"on_log": …})
    result = trainer.wait()

A module is imported when one of its names is first used, so that a backend, which is part of this
package, loads no code of the client.
"""

from importlib import import_module
from typing import Any

from arkor.settings import VERSION

__version__ = VERSION

#: Module below `arkor` → the public names in it; `__init__.pyi` lists the same for type checkers.
_EXPORTS = {
    "callbacks": "CheckpointContext CompletedContext FailedContext FinishedContext "
    "StartedContext TrainerCallbacks TrainingLogContext",
    "client.api": "CloudApiClient",
    "client.auth.bootstrap": "ensure_credentials request_anonymous_token",
    "client.auth.credentials": "AnonymousCredentials OAuthCredentials TokenCredentials credentials_path "
    "default_cloud_api_url read_credentials write_credentials",
    "client.chat_response": "ChatResponse",
    "client.connect": "connect",
    "client.project_state": "ProjectState read_state state_path write_state",
    "client.streaming.reconnect_policy": "ReconnectPolicy",
    "errors": "ArkorError BackendUnavailable CloudApiError CredentialsError InvalidConfig "
    "ProjectStateMismatch StreamLost TrainerAborted TrainingFailed",
    "protocol.chat": "InferenceRequest",
    "protocol.chat_types": "ChatMessage ResponseFormat StructuredOutputs Tool ToolCall",
    "protocol.datasets": "BlobDataset FileDataset HuggingFaceDataset",
    "protocol.estimates": "Estimate",
    "protocol.jobs": "Artifact JobConfig JobStatus LoraConfig Scope TrainingJob",
    "protocol.model_target": "Adapter",
    "results.check": "Check",
    "results.history": "History",
    "results.training_result": "TrainingResult",
    "settings": "SUPPORTED_MODELS",
    "trainer.project": "Arkor create_arkor is_arkor run_trainer",
    "trainer.trainer": "StartedJob Trainer create_trainer",
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names.split()}

__all__ = sorted(["__version__", *_MODULE_OF])  # noqa: PLE0605 - a list all the same


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(f"arkor.{_MODULE_OF[name]}"), name)
        return globals().setdefault(name, value)
    try:
        return import_module(f"arkor.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"arkor.{name}":
            raise
        raise AttributeError(f"module 'arkor' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
