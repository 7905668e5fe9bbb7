"""Every exception this project raises for a user, in one tree.

Ground file: it imports nothing of ours. Each error carries three parts (what failed with its value
and path, why, what to do next), a stable `code` for programs and an HTTP `status` for the servers.
Library code raises these and never prints; `cli/main.py` prints `error:` and `hint:` and exits. The
second column is the HTTP status; UsageError also gives the exit code 2, all others give 1.

    EdgeAgentError
    ├── UsageError            400   a flag, a setting or an address that is not possible
    ├── DaemonNotRunning      503   no daemon answers on any socket that was tried
    ├── DaemonRunning         409   another process holds STATE/lock
    ├── ModelNotFound         404   no model of this name is registered
    ├── ModelFormatError      422   a GGUF file that must not reach llama.cpp
    ├── ModelRefused          507   the model does not fit in memory; says what would fit
    ├── ModelCorrupt          422   the file's SHA-256 differs from the registered one
    ├── DownloadError         502   a pull that did not finish
    ├── ConversionError       422   a checkpoint, adapter or type that cannot be converted
    ├── LibraryMismatch       503   llama.cpp lacks a function, or cannot be loaded
    ├── AdapterNotFound       404   no adapter of this name is registered for this model
    ├── AdapterRefused        422   a broken adapter, another model's adapter, or a failed gate
    ├── DataRefused           422   training data that cannot or should not be learned from
    ├── TrainingFailed        500   the trainer stopped; its last checkpoint is kept
    ├── TrainingBusy          409   another lesson is running; there is one at a time
    ├── FeedbackNotFound      404   no such feedback, or no remembered answer to attach it to
    ├── QuotaExceeded         429   a user has too much feedback that is not learned yet
    ├── RequestError          400   a request that can never be answered
    │   ├── SchemaError       400   a JSON schema outside the supported subset
    │   └── ContextExceeded   400   more tokens than a slot holds
    ├── TemplateError         422   a chat template that cannot be rendered safely
    ├── Overloaded            429   the queue is full; carries retry_after_s
    ├── WorkerFailed          503   the worker died during this request; a new one will start
    ├── ModelQuarantined      503   the model has crashed the worker too often
    ├── ShuttingDown          503   the daemon is stopping
    └── StoreError            503   the database or the disk failed
"""

from __future__ import annotations


class EdgeAgentError(Exception):
    """Base of all. `what`, `why` and `hint` are sentences without a final full stop.

    Example: `raise ModelNotFound("no model named 'x'", "", "run `edge-agent list`")`
    """

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
    """A flag, a setting or an address that is not possible (exit code 2)."""

    code = "usage_error"
    status = 400


class DaemonNotRunning(EdgeAgentError):
    """No daemon answers on any of the sockets that were tried."""

    code = "daemon_not_running"
    status = 503


class DaemonRunning(EdgeAgentError):
    """Another process holds STATE/lock."""

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
    """The memory check says that weights, KV cache and compute buffer do not fit in memory."""

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
    """A checkpoint, adapter or requested type that cannot be converted; nothing was written."""

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
    """An adapter file that is broken or belongs to another model, or an adapter that failed its
    gate."""

    code = "adapter_refused"
    status = 422


class DataRefused(EdgeAgentError):
    """Training data that cannot be read, or that the audit advises against learning from."""

    code = "data_refused"
    status = 422


class TrainingFailed(EdgeAgentError):
    """The trainer stopped without an adapter; its last good checkpoint is kept."""

    code = "training_failed"
    status = 500


class TrainingBusy(EdgeAgentError):
    """Another lesson is running; there is one at a time."""

    code = "training_busy"
    status = 409


class FeedbackNotFound(EdgeAgentError):
    """No feedback has this number, or no remembered answer exists to attach feedback to."""

    code = "feedback_not_found"
    status = 404


class QuotaExceeded(EdgeAgentError):
    """One user's feedback on one model that no adapter has learned yet has reached its limit."""

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
    """The worker process died while it was working on this request."""

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
    """SQLite or the disk under it failed. Nothing that was acknowledged before is lost."""

    code = "storage_failed"
    status = 503


def _subclasses(cls: type[EdgeAgentError]) -> list[type[EdgeAgentError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _subclasses(child))]


def error_from_code(code: str, what: str, why: str = "", hint: str = "") -> EdgeAgentError:
    """The exception whose class has this `code`; for an unknown code, EdgeAgentError with it.

    How an error crosses a process border: the worker, the trainer and the daemon send the code and
    the three parts, and the receiver raises the same class again.
    """
    by_code = {cls.code: cls for cls in reversed(_subclasses(EdgeAgentError))}
    error = by_code.get(code, EdgeAgentError)(what, why, hint)
    error.code = code
    return error
