from arkor.callbacks import (
    CheckpointContext,
    CompletedContext,
    FailedContext,
    FinishedContext,
    StartedContext,
    TrainerCallbacks,
    TrainingLogContext,
)
from arkor.client.api import CloudApiClient
from arkor.client.auth.bootstrap import ensure_credentials, request_anonymous_token
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    OAuthCredentials,
    TokenCredentials,
    credentials_path,
    default_cloud_api_url,
    read_credentials,
    write_credentials,
)
from arkor.client.chat_response import ChatResponse
from arkor.client.connect import connect
from arkor.client.project_state import ProjectState, read_state, state_path, write_state
from arkor.client.streaming.reconnect_policy import ReconnectPolicy
from arkor.errors import (
    ArkorError,
    BackendUnavailable,
    CloudApiError,
    CredentialsError,
    InvalidConfig,
    ProjectStateMismatch,
    StreamLost,
    TrainerAborted,
    TrainingFailed,
)
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.chat_types import ChatMessage, ResponseFormat, StructuredOutputs, Tool, ToolCall
from arkor.protocol.datasets import BlobDataset, FileDataset, HuggingFaceDataset
from arkor.protocol.estimates import Estimate
from arkor.protocol.jobs import Artifact, JobConfig, JobStatus, LoraConfig, Scope, TrainingJob
from arkor.protocol.model_target import Adapter
from arkor.results.check import Check
from arkor.results.history import History
from arkor.results.training_result import TrainingResult
from arkor.settings import SUPPORTED_MODELS
from arkor.trainer.project import Arkor, create_arkor, is_arkor, run_trainer
from arkor.trainer.trainer import StartedJob, Trainer, create_trainer

__version__: str

__all__ = [  # noqa: RUF022 - sorted like the list of `__init__.py`
    "Adapter",
    "AnonymousCredentials",
    "Arkor",
    "ArkorError",
    "Artifact",
    "BackendUnavailable",
    "BlobDataset",
    "ChatMessage",
    "ChatResponse",
    "Check",
    "CheckpointContext",
    "CloudApiClient",
    "CloudApiError",
    "CompletedContext",
    "CredentialsError",
    "Estimate",
    "FailedContext",
    "FileDataset",
    "FinishedContext",
    "History",
    "HuggingFaceDataset",
    "InferenceRequest",
    "InvalidConfig",
    "JobConfig",
    "JobStatus",
    "LoraConfig",
    "OAuthCredentials",
    "ProjectState",
    "ProjectStateMismatch",
    "ReconnectPolicy",
    "ResponseFormat",
    "SUPPORTED_MODELS",
    "Scope",
    "StartedContext",
    "StartedJob",
    "StreamLost",
    "StructuredOutputs",
    "TokenCredentials",
    "Tool",
    "ToolCall",
    "Trainer",
    "TrainerAborted",
    "TrainerCallbacks",
    "TrainingFailed",
    "TrainingJob",
    "TrainingLogContext",
    "TrainingResult",
    "__version__",
    "connect",
    "create_arkor",
    "create_trainer",
    "credentials_path",
    "default_cloud_api_url",
    "ensure_credentials",
    "is_arkor",
    "read_credentials",
    "read_state",
    "request_anonymous_token",
    "run_trainer",
    "state_path",
    "write_credentials",
    "write_state",
]
