"""Render an untrusted chat template in a child process that can be killed.

Why it exists: a GGUF file brings its own Jinja program. Jinja's sandbox stops a program from
escaping, but not `9**99999999` or `'a'*3000000000`: constant folding runs these while the template
is compiled, so the parent process never compiles a template. Flows in: template text, messages, BOS
and EOS texts. Flows out: the rendered text; TemplateError when the template is at fault; or
RequestError when the template calls raise_exception to refuse the messages.

The child process (`python -m edge_agent.prompt.template_sandbox`) imports jinja2 and, of this
project, only edge_agent.errors. Its memory, CPU time and files are limited, and it speaks JSON
lines over pipes. When it answers too late it is killed, and the next call starts another one. Not
here: which templates need the sandbox, and finding control tokens in the text (chat_template.py).
"""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.errors import EdgeAgentError, RequestError, TemplateError

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_TEMPLATE_BYTES = 32 * 1024
"""The longest of the 60 published templates in llama.cpp's tree (gpt-oss) has 16,738 bytes."""
MAX_REPLY_BYTES = 64 * 1024 * 1024
CHILD_MEMORY_BYTES = 128 * 1024 * 1024
"""Address space that the child may add to what it has after its imports (25 MB). A message of 4 MiB
needs about half of it."""
START_TIMEOUT_S = 20.0
"""Limit on the start of the interpreter, which is not part of a render's deadline."""

_HINT = "send a raw prompt to /v1/completions, or use a model with another template"


class TemplateSandbox:
    """Owns at most one child process. The first render starts it; later ones reuse it until it is
    too slow or ends.

        TemplateSandbox().render(template, [{"role": "user", "content": "Hi"}], "<bos>", "<eos>")
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, str]],
        bos_token: str,
        eos_token: str,
        deadline_s: float = 1.0,
    ) -> str:
        """The template's text for messages ({role, content} each), with the generation prompt.

        Raises TemplateError when the template is too long, is broken, is too slow, writes too much,
        or does what Jinja's sandbox forbids; RequestError when it calls raise_exception.
        Thread-safe: one render at a time.
        """
        size = len(template.encode("utf-8", "surrogatepass"))
        if size > MAX_TEMPLATE_BYTES:
            raise TemplateError(
                f"chat template of {size} bytes", f"at most {MAX_TEMPLATE_BYTES} are run", _HINT
            )
        request = {
            "template": template,
            "messages": list(messages),
            "bos_token": bos_token,
            "eos_token": eos_token,
            "cpu_s": deadline_s,
        }
        with self._lock:
            return _text_of(self._ask(json.dumps(request).encode() + b"\n", deadline_s))

    def close(self) -> None:
        """End the child process, if there is one. The sandbox can be used again."""
        with self._lock:
            self._stop()

    def _ask(self, request: bytes, deadline_s: float) -> bytes:
        child = self._running_child()
        try:
            return _exchange(child, request, time.monotonic() + deadline_s)
        except TimeoutError:
            self._stop()
            raise TemplateError(
                "chat template was stopped", f"it did not finish within {deadline_s:g} s", _HINT
            ) from None
        except OSError as error:
            self._stop()
            raise TemplateError(
                "chat template ended its process",
                f"it used too much memory or stack ({error})",
                _HINT,
            ) from None

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self._stop()
        if self._child is None:
            self._child = _start_child()
            try:
                _exchange(self._child, b"", time.monotonic() + START_TIMEOUT_S)
            except OSError as error:
                self._stop()
                raise TemplateError(
                    "the template sandbox did not start", f"{sys.executable}: {error!r}", _HINT
                ) from None
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _start_child() -> subprocess.Popen[bytes]:
    """Start a child with a new environment: the parent's may hold tokens, paths and proxies."""
    root = str(Path(__file__).resolve().parents[2])
    child = subprocess.Popen(
        [sys.executable, "-s", "-m", "edge_agent.prompt.template_sandbox"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": root, "PYTHONUTF8": "1"},
        cwd="/",
        bufsize=0,
    )
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
    return child


def _exchange(child: subprocess.Popen[bytes], request: bytes, deadline: float) -> bytes:
    """Write `request` and read one line, until `deadline` (seconds of the monotonic clock).

    Raises TimeoutError at the deadline, and another OSError when the child is gone or its reply is
    longer than MAX_REPLY_BYTES.
    """
    assert child.stdin is not None and child.stdout is not None
    source, sink = child.stdout.fileno(), child.stdin.fileno()
    unsent, reply = memoryview(request), bytearray()
    while not reply.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        readable, writable, _ = select.select(
            [source], [sink] if unsent else [], [], max(left_s, 0.0)
        )
        if not readable and not writable:
            raise TimeoutError("no answer")
        if writable:
            unsent = unsent[os.write(sink, unsent[:65536]) :]
        if readable:
            chunk = os.read(source, 1 << 20)
            if not chunk or len(reply) + len(chunk) > MAX_REPLY_BYTES:
                raise BrokenPipeError(f"after {len(reply)} bytes")
            reply += chunk
    return bytes(reply)


def _text_of(reply: bytes) -> str:
    try:
        answer = json.loads(reply)
        text, error, why = answer.get("text"), answer.get("error"), str(answer.get("why"))
    except (ValueError, AttributeError) as cause:
        raise TemplateError("the template sandbox answered nonsense", str(cause), _HINT) from None
    if isinstance(text, str):
        return text
    raised: EdgeAgentError
    if error == "request":
        raised = RequestError(
            "the model's chat template refuses these messages", why, "change the order or the roles"
        )
    else:
        raised = TemplateError("chat template could not be rendered", why, _HINT)
    raise raised


# ---- child -------------------------------------------------------------------------------------


class _RaisedByTemplate(Exception):
    """raise_exception(...) inside the template."""


def _environment() -> Environment:
    """Jinja as transformers sets it up for chat templates, so that published templates render the
    same text as there."""
    from datetime import datetime

    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the text that training learns; here it has no effect."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: object) -> None:
        raise _RaisedByTemplate(str(message))

    def strftime_now(layout: str) -> str:
        return datetime.now().astimezone().strftime(layout)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    """Plain JSON. Jinja's own filter escapes for HTML, and models were not trained on that."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _answer(environment: Environment, request: dict[str, Any]) -> dict[str, str]:
    """The reply to the parent. Thinking is off (enable_thinking): see chat_template.py."""
    try:
        text = environment.from_string(request["template"]).render(
            messages=request["messages"],
            bos_token=request["bos_token"],
            eos_token=request["eos_token"],
            add_generation_prompt=True,
            enable_thinking=False,
            tools=None,
            documents=None,
        )
    except _RaisedByTemplate as error:
        return {"error": "request", "why": str(error)[:500]}
    except Exception as error:
        return {"error": "template", "why": f"{type(error).__name__}: {error}"[:500]}
    return {"text": text}


def _warm_up(environment: Environment) -> None:
    """Render once with success and with each kind of failure, so that every lazy import happens
    before `_limit_process` forbids opening files."""
    for template in ("{{ raise_exception('') }}{{ x|tojson }}", "{{ strftime_now('%Z') }}", "{{"):
        _answer(
            environment, {"template": template, "messages": [], "bos_token": "", "eos_token": ""}
        )


def _limit_process() -> None:
    """Limit the growth of memory; forbid opening files, writing files, child processes and core
    dumps."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        used_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    ceiling = used_bytes + CHILD_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _limit_cpu(seconds: float) -> None:
    """Limit CPU time to a little more than the deadline: SIGXCPU then ends the child even when the
    parent is gone."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def serve(requests: Iterable[bytes], reply_fd: int) -> None:
    """The child's main loop: read one JSON line, write one JSON line, until the pipe closes."""
    environment = _environment()
    _warm_up(environment)
    _limit_process()
    os.write(reply_fd, b"{}\n")
    for line in requests:
        request = json.loads(line)
        _limit_cpu(float(request["cpu_s"]))
        reply = memoryview(json.dumps(_answer(environment, request)).encode() + b"\n")
        while reply:
            reply = reply[os.write(reply_fd, reply[:65536]) :]


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.fileno())
