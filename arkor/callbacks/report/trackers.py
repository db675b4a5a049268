"""Experiment trackers, through their libraries, which are imported when a run begins."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import attrs

from arkor.errors import InvalidConfig
from arkor.protocol.jobs import JobConfig, TrainingJob


class Tracker(Protocol):
    """A destination of metrics."""

    def open(self, job: TrainingJob, restart: bool) -> None:
        """Begin to report a run: from its first step if `restart`, else after the last one."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Report the metrics of one step, by the names of `TrainingLogContext`."""

    def close(self, status: str | None) -> None:
        """Finish the report; `status` is the final status, None if the run continues."""


def require_module(*modules: str, package: str) -> str:
    """Return the first installed module. Raise `InvalidConfig` if none of them is installed.

    `package` are the arguments of the `pip install` that the error names.
    """
    for module in modules:
        if find_spec(module) is not None:
            return module
    raise InvalidConfig("Report.to", f"needs the package {package}", f"install it: pip install {package}")


def group_names(numbers: Mapping[str, float]) -> dict[str, float]:
    """Prefix each name with `train/` or `eval/`, by which trackers group metrics."""
    return {"eval/loss" if name == "eval_loss" else f"train/{name}": number for name, number in numbers.items()}


def settings_of(job: TrainingJob) -> dict[str, str | float]:
    """Return the configuration of a run as a flat dict, without secrets."""
    config = job.config
    if not isinstance(config, JobConfig):
        return {}
    plain = {
        name: value if isinstance(value, (str, int, float)) else json.dumps(value, default=str)
        for name in attrs.fields_dict(JobConfig)
        if name not in ("dataset_source", "extra") and (value := getattr(config, name)) is not None
    }
    return {**plain, "dataset": _dataset(config.dataset_source), "job_id": job.id}


def _dataset(source: Any) -> str:
    url = getattr(source, "url", None)
    if isinstance(url, str):
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return str(getattr(source, "name", None) or getattr(source, "path", None) or "")


class TensorBoard:
    """Event files in a subfolder of `folder` for each run, by tensorboardX or else tensorboard."""

    def __init__(self, folder: str | Path = "runs") -> None:
        self._module = require_module("tensorboardX", "tensorboard", package="tensorboardX")
        self._folder = Path(folder).expanduser().absolute()

    def open(self, job: TrainingJob, restart: bool) -> None:
        folder = self._folder / job.id
        if restart:  # replace the events of an earlier report of this run
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink(missing_ok=True)
        if self._module == "tensorboardX":
            self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))
        else:
            self._writer = importlib.import_module("tensorboard.summary").Writer(str(folder))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for tag, number in group_names(numbers).items():
            self._writer.add_scalar(tag, number, step)

    def close(self, status: str | None) -> None:  # noqa: ARG002 - event files have no field for it
        self._writer.close()


class WeightsAndBiases:
    """A wandb run with the id of the job; `options` are passed to `wandb.init`."""

    _library = "wandb"

    def __init__(self, **options: Any) -> None:
        require_module(self._library, package=self._library)
        self._options = options

    def open(self, job: TrainingJob, restart: bool) -> None:  # noqa: ARG002 - wandb skips old steps
        library = importlib.import_module(self._library)
        base = {"config": settings_of(job), "resume": "allow", **self._identity(job)}
        self._run = library.init(**{**base, **self._options})

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(group_names(numbers), step=step)

    def close(self, status: str | None) -> None:
        self._run.finish(exit_code=0 if status in ("completed", None) else 1)

    def _identity(self, job: TrainingJob) -> dict[str, Any]:
        return {"id": job.id, "name": job.name, "reinit": "create_new"}


class Trackio(WeightsAndBiases):
    """A trackio run in `project`; its interface is wandb's, but it continues a run by its name."""

    _library = "trackio"

    def __init__(self, project: str = "arkor", **options: Any) -> None:
        super().__init__(project=project, **options)

    def close(self, status: str | None) -> None:  # noqa: ARG002 - trackio has no field for it
        self._run.finish()

    def _identity(self, job: TrainingJob) -> dict[str, Any]:
        return {"name": f"{job.name}-{job.id[:8]}"}


#: The packages that MLflow needs, and those that it also needs to store runs itself, in a database.
#: mlflow-skinny does not depend on the latter.
MLFLOW_PACKAGES, MLFLOW_STORE_MODULES = "mlflow-skinny sqlalchemy alembic", ("sqlalchemy", "alembic")

_RUN_STATUSES = {"completed": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class MLflow:
    """An MLflow run in `experiment`, found by a tag; `tracking_uri` defaults to MLflow's own."""

    def __init__(self, experiment: str = "arkor", tracking_uri: str | None = None) -> None:
        require_module("mlflow", package=MLFLOW_PACKAGES)
        self._experiment, self._tracking_uri = experiment, tracking_uri
        if any(find_spec(module) is None for module in MLFLOW_STORE_MODULES):
            self._connect()  # only a server works without them

    def open(self, job: TrainingJob, restart: bool) -> None:  # noqa: ARG002 - `log` skips old steps
        self._client = self._connect()
        self._entities = importlib.import_module("mlflow.entities")
        self._run_id = self._find_run(job.id) or self._create_run(job)
        self._last_steps: dict[str, int] = {}

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        new = {name: number for name, number in group_names(numbers).items() if step > self._last_step(name)}
        if new:
            metrics = [self._entities.Metric(name, number, now, step) for name, number in new.items()]
            self._client.log_batch(self._run_id, metrics=metrics)
            self._last_steps.update(dict.fromkeys(new, step))

    def close(self, status: str | None) -> None:
        if status in _RUN_STATUSES:
            self._client.set_terminated(self._run_id, _RUN_STATUSES[status])

    def _connect(self) -> Any:
        """Return the client of the tracking URI. Raise `InvalidConfig` if its store needs packages."""
        mlflow = importlib.import_module("mlflow")
        try:
            return mlflow.MlflowClient(tracking_uri=self._tracking_uri)
        except (mlflow.MlflowException, ImportError) as error:
            database = urlsplit(self._tracking_uri or mlflow.get_tracking_uri()).scheme
            missing = [module for module in MLFLOW_STORE_MODULES if find_spec(module) is None]
            if not missing or database in ("", "file"):
                raise
            raise InvalidConfig(
                "Report.to",
                f"MLflow needs {' and '.join(missing)} to store runs in a database ({database})",
                f"install them: pip install {MLFLOW_PACKAGES}, or set tracking_uri to the URL of an MLflow server",
            ) from error

    def _experiment_id(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        return str(experiment.experiment_id if experiment else self._client.create_experiment(self._experiment))

    def _find_run(self, job_id: str) -> str | None:
        has_tag = "tags.`arkor.job_id` = '{}'".format(job_id.replace("'", ""))
        runs = self._client.search_runs([self._experiment_id()], filter_string=has_tag, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _create_run(self, job: TrainingJob) -> str:
        tags = {"arkor.job_id": job.id}
        run_id = str(self._client.create_run(self._experiment_id(), run_name=job.name, tags=tags).info.run_id)
        params = [self._entities.Param(name, str(value)[:500]) for name, value in settings_of(job).items()]
        self._client.log_batch(run_id, params=params)
        return run_id

    def _last_step(self, name: str) -> int:
        if name not in self._last_steps:
            history = self._client.get_metric_history(self._run_id, name)
            self._last_steps[name] = max((metric.step for metric in history), default=-1)
        return self._last_steps[name]
