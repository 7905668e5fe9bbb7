"""Every exception this project raises for a user, in one tree.

Leaf file: imports nothing of ours. Each error carries three parts (what failed with its value and
path, why, what to do next), a stable `code` for programs and an HTTP `status` for the servers.
Library code raises these and never prints; `cli/main.py` prints `error:` and `hint:` and exits.

    EdgeAgentError
    ├── UsageError            2 / 400   a flag, a setting or an address that cannot be
    ├── DaemonNotRunning      -         no socket answers
    ├── DaemonRunning         -         STATE/lock is held by somebody else
    ├── ModelNotFound         404       no such name in the registry
    ├── ModelFormatError      422       a GGUF file that must not reach llama.cpp
    ├── ModelRefused          507       it would not fit: the three numbers and what would
    ├── ModelCorrupt          422       SHA-256 differs from the registered one
    ├── DownloadError         502       a pull that did not finish
    ├── ConversionError       422       a checkpoint, adapter or type that cannot be converted
    ├── LibraryMismatch       503       llama.cpp lacks a function, or cannot be loaded
    ├── AdapterNotFound       404       no adapter of this name for this model
    ├── AdapterRefused        422       an adapter that is broken, another's, or failed its gate
    ├── DataRefused           422       training data that cannot or should not be learned from
    ├── TrainingFailed        500       the trainer stopped; its last checkpoint is kept
    ├── TrainingBusy          409       one run at a time
    ├── FeedbackNotFound      404       no such feedback, or no remembered answer it could be about
    ├── QuotaExceeded         429       a user's feedback waits to be learned in too great a number
    ├── RequestError          400       a request that can never be answered
    │   ├── SchemaError       400       a JSON schema outside the supported subset
    │   └── ContextExceeded   400       more tokens than a slot holds
    ├── TemplateError         422       a chat template that cannot be rendered safely
    ├── Overloaded            429       queue full; carries retry_after_s
    ├── WorkerFailed          503       the worker died under this request; another will answer
    ├── ModelQuarantined      503       the crash budget is spent
    ├── ShuttingDown          503       the daemon drains
    └── StoreError            503       the database or the disk failed
"""

from __future__ import annotations


class EdgeAgentError(Exception):
    """Base of all. `what`, `why` and `hint` are sentences without a final full stop."""

    code = "internal_error"
    status = 500

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what


class UsageError(EdgeAgentError):
    """A flag, a setting or an address that cannot be (exit code 2)."""

    code = "usage_error"
    status = 400


class DaemonNotRunning(EdgeAgentError):
    """No daemon answers on any of the sockets looked at."""

    code = "daemon_not_running"
    status = 503


class DaemonRunning(EdgeAgentError):
    """STATE/lock is held by another process."""

    code = "daemon_running"
    status = 409


class ModelNotFound(EdgeAgentError):
    """No model of this name is registered."""

    code = "model_not_found"
    status = 404


class ModelFormatError(EdgeAgentError):
    """A GGUF file whose header is broken, hostile or of an unsupported architecture."""

    code = "model_format_error"
    status = 422


class ModelRefused(EdgeAgentError):
    """Admission: the model, its KV cache and its compute buffer do not fit in memory."""

    code = "model_refused"
    status = 507


class ModelCorrupt(EdgeAgentError):
    """The file's SHA-256 is not the one it was registered with."""

    code = "model_corrupt"
    status = 422


class DownloadError(EdgeAgentError):
    """A pull that did not finish."""

    code = "download_error"
    status = 502


class ConversionError(EdgeAgentError):
    """A checkpoint, an adapter or a wanted type that cannot be converted; nothing was written."""

    code = "conversion_failed"
    status = 422


class LibraryMismatch(EdgeAgentError):
    """The installed llama-cpp-python cannot be loaded, or lacks a function that is called."""

    code = "library_mismatch"
    status = 503


class AdapterNotFound(EdgeAgentError):
    """No adapter of this name is registered for this model."""

    code = "adapter_not_found"
    status = 404


class AdapterRefused(EdgeAgentError):
    """An adapter file that is broken or another model's, or an adapter that failed its gate."""

    code = "adapter_refused"
    status = 422


class DataRefused(EdgeAgentError):
    """Training data that cannot be read, or that the audit advises not to learn from."""

    code = "data_refused"
    status = 422


class TrainingFailed(EdgeAgentError):
    """The trainer stopped without an adapter; its last good checkpoint is kept."""

    code = "training_failed"
    status = 500


class TrainingBusy(EdgeAgentError):
    """Another run is under way: one at a time."""

    code = "training_busy"
    status = 409


class FeedbackNotFound(EdgeAgentError):
    """No feedback of this number, or no remembered answer that it could be about."""

    code = "feedback_not_found"
    status = 404


class QuotaExceeded(EdgeAgentError):
    """One user's feedback on one model that no adapter has learned yet is too much already."""

    code = "feedback_quota"
    status = 429


class RequestError(EdgeAgentError):
    """A request that can never be answered as it stands."""

    code = "invalid_request"
    status = 400


class SchemaError(RequestError):
    """A JSON schema outside the supported subset."""

    code = "invalid_schema"


class ContextExceeded(RequestError):
    """The prompt has more tokens than one slot's context holds."""

    code = "context_length_exceeded"


class TemplateError(EdgeAgentError):
    """A chat template that is broken, too slow or tries to leave its sandbox."""

    code = "template_error"
    status = 422


class Overloaded(EdgeAgentError):
    """The queue is full. `retry_after_s` is a whole number of seconds, at least 1."""

    code = "overloaded"
    status = 429

    def __init__(self, what: str, why: str = "", hint: str = "", retry_after_s: int = 1) -> None:
        super().__init__(what, why, hint)
        self.retry_after_s = retry_after_s


class WorkerFailed(EdgeAgentError):
    """The worker process died while this request was in it."""

    code = "worker_failed"
    status = 503


class ModelQuarantined(EdgeAgentError):
    """The model crashed the worker more often than --crash-budget allows."""

    code = "model_quarantined"
    status = 503


class ShuttingDown(EdgeAgentError):
    """The daemon no longer accepts requests."""

    code = "shutting_down"
    status = 503


class StoreError(EdgeAgentError):
    """SQLite or the disk under it failed; nothing that was acknowledged is lost."""

    code = "storage_failed"
    status = 503


def _subclasses(cls: type[EdgeAgentError]) -> list[type[EdgeAgentError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _subclasses(child))]


def error_from_code(code: str, what: str, why: str = "", hint: str = "") -> EdgeAgentError:
    """The exception of the class whose `code` this is; EdgeAgentError for an unknown code."""
    by_code = {cls.code: cls for cls in reversed(_subclasses(EdgeAgentError))}
    return by_code.get(code, EdgeAgentError)(what, why, hint)
