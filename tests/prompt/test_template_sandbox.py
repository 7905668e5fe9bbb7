from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import DEADLINE_S, has_ended, until

from edge_agent.errors import EdgeAgentError, RequestError, TemplateError
from edge_agent.prompt.template_sandbox import MAX_TEMPLATE_BYTES, TemplateSandbox

HELLO = [{"role": "user", "content": "hello"}]
HOSTILE_S = 0.3
SLACK_S = 30.0
"""For ending this child and starting the next; the deadline itself is kept by poll."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[TemplateSandbox]:
    sandbox = TemplateSandbox()
    yield sandbox
    sandbox.close()


def render(sandbox: TemplateSandbox, template: str, deadline_s: float = DEADLINE_S) -> str:
    return sandbox.render(template, HELLO, "<s>", "</s>", deadline_s)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ joiner.__init__.__globals__.__builtins__.__import__('os') }}",
    "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['os'].environ }}",
    "{{ strftime_now.__code__.co_consts }}{{ strftime_now.__closure__[0] }}",
    "{{ (''|attr('__class__')).__mro__ }}{{ (''|attr('__class__'))() }}",
    "{{ '{0.__class__.__init__}'.format(messages) }}{{ ''.format.__self__.__class__() }}",
    "{% include '/etc/passwd' %}",
    "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context.environment.globals() }}",
    "{{ messages.append({'role': 'system'}) }}",
]
CPU_BOMBS = [
    "{{ 9**99999999 }}",
    "{% set n = 9 %}{{ n**99999999 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(1000000000) %}{% endfor %}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{% for i in range(99999) %}"
    "{% for j in range(99999) %}{{ i * j }}{% endfor %}{% endfor %}{{ m(1) }}",
    "{{ (2**300000)|string|length }}{{ (7**3000000)|string }}",
    "{{ range(99999)|map('string')|join|length }}{% for i in range(99999) %}"
    "{{ range(99999)|sum }}{% endfor %}",
    "{{ 3**(3**(3**3)) }}",
    "{% for i in range(99999) %}{{ range(99999)|list|sort|length }}{% endfor %}",
    "{% for i in range(99999) %}{{ (i|string * 9999)|urlize|length }}{% endfor %}",
    "{% set x = namespace(v=1) %}{% for i in range(99999) %}{% set x.v = x.v * 3**999 %}"
    "{% endfor %}{{ x.v % 7 }}",
    "{{ 1 << 2 }}{% for i in range(99999) %}{{ ('x ' * 9999)|wordcount }}{% endfor %}",
]
MEMORY_BOMBS = [
    "{{ 'a' * 3000000000 }}",
    "{% set n = 3000000000 %}{{ 'a' * n }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 'a'|center(999999999) }}",
    "{{ (range(99999)|list * 99999)|length }}",
    "{% set x = namespace(v='ab') %}{% for i in range(64) %}{% set x.v = x.v ~ x.v %}{% endfor %}",
    "{{ lipsum(n=99999, min=999, max=9999) }}",
]
BROKEN = [
    "{% if %}",
    "{{ messages | no_such_filter }}",
    "{{ messages is no_such_test }}",
    "{% for m in messages %}",
    "{{ messages[0].content.no_such() }}",
    "{{ undefined_thing.x }}",
    "{% extends 'base' %}",
    "{{" + "(" * 15000 + ")" * 15000 + "}}",
]
HOSTILE = [*ESCAPES, *CPU_BOMBS, *MEMORY_BOMBS, *BROKEN]


def test_there_are_forty() -> None:
    assert (len(ESCAPES), len(CPU_BOMBS), len(MEMORY_BOMBS), len(BROKEN)) == (12, 12, 8, 8)


@pytest.mark.parametrize("template", HOSTILE, ids=lambda template: template[:40])
def test_hostile_templates_end_in_time_with_a_typed_error(
    sandbox: TemplateSandbox, template: str
) -> None:
    start = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        render(sandbox, template, HOSTILE_S)
    assert time.monotonic() - start < HOSTILE_S + SLACK_S
    assert caught.value.why and caught.value.hint
    assert "root:" not in str(caught.value) and "PATH" not in str(caught.value)


def test_the_sandbox_works_after_a_kill(sandbox: TemplateSandbox) -> None:
    with pytest.raises(TemplateError, match="did not finish within 0.3 s"):
        render(sandbox, CPU_BOMBS[0], HOSTILE_S)
    assert render(sandbox, "{{ messages[0].content }}") == "hello"


def test_the_parent_does_not_compile_and_does_not_import_jinja() -> None:
    code = (
        "import sys\n"
        "from edge_agent.prompt.template_sandbox import TemplateSandbox\n"
        "sandbox = TemplateSandbox()\n"
        "assert sandbox.render('{{ 6 * 7 }}', [], '', '') == '42'\n"
        "sandbox.close()\n"
        "print('jinja2' in sys.modules)"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "False"


def test_memory_of_the_child_is_bounded(sandbox: TemplateSandbox) -> None:
    render(sandbox, "{{ 1 }}")
    child = sandbox._child
    assert child is not None
    limits = Path(f"/proc/{child.pid}/limits").read_text()
    address_space = next(line for line in limits.splitlines() if "address space" in line)
    assert int(address_space.split()[3]) < 300 * 1024 * 1024
    files = next(line for line in limits.splitlines() if "open files" in line)
    assert files.split()[3] == "0"


def test_the_child_sees_no_environment(
    sandbox: TemplateSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_AGENT_SECRET", "s3cret")
    fresh = TemplateSandbox()
    try:
        render(fresh, "{{ 1 }}")
        assert fresh._child is not None
        environ = Path(f"/proc/{fresh._child.pid}/environ").read_bytes()
    finally:
        fresh.close()
    assert b"s3cret" not in environ


def test_one_child_is_reused_and_close_ends_it() -> None:
    sandbox = TemplateSandbox()
    render(sandbox, "{{ 1 }}")
    first = sandbox._child
    assert first is not None
    render(sandbox, "{{ 2 }}")
    assert sandbox._child is first
    sandbox.close()
    assert first.returncode is not None
    sandbox.close()
    assert render(sandbox, "{{ 3 }}") == "3"
    sandbox.close()


def test_a_child_killed_between_two_renders_is_replaced() -> None:
    sandbox = TemplateSandbox()
    try:
        render(sandbox, "{{ 1 }}")
        assert sandbox._child is not None
        os.kill(sandbox._child.pid, 9)
        sandbox._child.wait()
        assert render(sandbox, "{{ 2 }}") == "2"
    finally:
        sandbox.close()


def test_the_child_ends_with_its_parent() -> None:
    code = (
        "import os\n"
        "from edge_agent.prompt.template_sandbox import TemplateSandbox\n"
        "sandbox = TemplateSandbox()\n"
        "sandbox.render('x', [], '', '')\n"
        "print(sandbox._child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    pid = int(done.stdout)
    until(lambda: has_ended(pid))


def test_raise_exception_is_the_clients_error(sandbox: TemplateSandbox) -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        render(sandbox, "{{ raise_exception('roles must alternate') }}")
    assert not isinstance(caught.value, TemplateError)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}\n  {{ m.role }}\n{% endfor %}\n", "  user\n"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hello"}]'),
        ("{{ {'a': 'é<'} | tojson(indent=2) }}", '{\n  "a": "é<"\n}'),
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hello"),
        ("{{ add_generation_prompt }} {{ enable_thinking }} {{ tools }}", "True False None"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}", "2"),
    ],
)
def test_templates_render_as_transformers_renders_them(
    sandbox: TemplateSandbox, template: str, expected: str
) -> None:
    assert render(sandbox, template) == expected


def test_long_templates_are_refused_before_the_child_sees_them() -> None:
    sandbox = TemplateSandbox()
    with pytest.raises(TemplateError, match="at most 32768"):
        render(sandbox, "x" * (MAX_TEMPLATE_BYTES + 1))
    assert sandbox._child is None


def test_four_megabytes_of_conversation_fit(sandbox: TemplateSandbox) -> None:
    content = "a\ue000" * (2 * 1024 * 1024)
    messages = [{"role": "user", "content": content}]
    template = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"
    assert sandbox.render(template, messages, "", "", 20.0) == f"<{content}>"


def test_text_outside_unicode_survives_or_is_refused(sandbox: TemplateSandbox) -> None:
    messages = [{"role": "user", "content": "\ud800 ok"}]
    try:
        assert "ok" in sandbox.render("{{ messages[0].content }}", messages, "", "")
    except EdgeAgentError:
        pytest.fail("a lone surrogate must not break the pipe")
