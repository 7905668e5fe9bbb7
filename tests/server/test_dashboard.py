"""The dashboard in a real browser: Debian's Chromium, headless, on the real front's sockets."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import http_front
import msgspec
import pytest
from aiohttp import web
from board_writer import copied_board
from fake_engine import FakeSupervisor
from http_front import Front, serving
from waiting import DEADLINE_S, until

from edge_agent.adapt.lesson_runner import LessonRunner
from edge_agent.adapt.messages import TrainingProgress
from edge_agent.server.adapt import ADAPTATION

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HTML = {"Accept": "text/html,application/xhtml+xml"}
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    pieces = [f"word{n} " for n in range(30)]
    supervisor = FakeSupervisor(pieces=pieces)
    root = copied_board("jetson-nano_jetpack4", tmp_path / "board")
    (tmp_path / "state").mkdir()
    with serving(tmp_path / "state", supervisor, sensors_root=root, senses=True) as front:
        write_address(front)
        yield front


def write_address(front: Front) -> None:
    """What the daemon does once it knows its port."""
    text = f'{{"port": {front.port}, "socket": "{front.socket_path}"}}'
    (front.settings.state_dir / "run.json").write_text(text)


def link(front: Front) -> str:
    return str(front.post("/dashboard/link", {}).json()["url"])


# ---- without a browser -----------------------------------------------------------------------


def test_clients_that_are_no_browser_still_get_the_banner(front: Front) -> None:
    assert front.get("/", token=None).body == b"Ollama is running"


def test_browser_without_a_session_is_told_how_to_get_one(front: Front) -> None:
    answer = front.get("/", token=None, headers=HTML)
    assert answer.status == 401 and b"edge-agent dashboard" in answer.body


def test_link_needs_a_token(front: Front) -> None:
    assert front.post("/dashboard/link", {}, token=None).status == 401


def enter(front: Front, code: str) -> Any:
    return front.post("/dashboard/session", {"code": code}, token=None)


def test_link_works_once_and_its_cookie_opens_page_and_api(front: Front) -> None:
    code = link(front).partition("#")[2]
    answer = enter(front, code)
    assert answer.status == 204
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and str(front.port) in cookie
    sent = {"Cookie": cookie.partition(";")[0]}
    page = front.get("/", token=None, headers={**HTML, **sent})
    assert page.status == 200 and b"/dashboard/app.js" in page.body
    assert front.get("/status", token=None, headers=sent).status == 200
    assert enter(front, code).status == 403


def test_cookie_from_another_sites_page_counts_for_nothing(front: Front) -> None:
    cookie = enter(front, link(front).partition("#")[2]).headers["Set-Cookie"].partition(";")[0]
    for site in ("cross-site", "same-site", "none"):
        headers = {"Cookie": cookie, "Sec-Fetch-Site": site}
        assert front.get("/status", token=None, headers=headers).status == 401
    origin = {"Cookie": cookie, "Origin": "http://127.0.0.1:1"}
    assert front.post("/v1/completions", {"prompt": "x"}, token=None, headers=origin).status == 403


def test_page_forbids_inline_code_and_every_other_origin(front: Front) -> None:
    for path in ("/", "/dashboard/enter", "/dashboard/app.js"):
        policy = front.get(path, token=None, headers=HTML).headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
    page = Path("edge_agent/server/page")
    for name in ("index.html", "enter.html", "locked.html"):
        text = (page / name).read_text()
        assert not re.search(r"\son\w+=|style=|<script>|<style|https?://", text)


def test_unchanged_file_is_not_sent_again(front: Front) -> None:
    first = front.get("/dashboard/app.js", token=None)
    again = front.get(
        "/dashboard/app.js", token=None, headers={"If-None-Match": first.headers["ETag"]}
    )
    assert (first.status, again.status, again.body) == (200, 304, b"")


# ---- in Chromium -----------------------------------------------------------------------------


class Browser:
    """A page, and what it said and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Browser]:
    """A fresh profile: no cookie of an earlier test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(1000 * DEADLINE_S)
    yield Browser(page)
    context.close()


def shows(page: Any, expression: str, arg: Any = None) -> None:
    """Poll from here: wait_for_function needs eval, which the page's policy forbids."""
    until(lambda: page.evaluate(expression, arg), poll_s=0.05)


def open_page(browser: Browser, front: Front) -> None:
    """Through the page of the link, until the script of the dashboard has run."""
    browser.page.goto(link(front))
    browser.page.wait_for_selector("#prompt")
    browser.page.wait_for_load_state("load")


def open_dashboard(browser: Browser, front: Front) -> None:
    open_page(browser, front)
    browser.page.wait_for_selector("#charts svg path.line", state="attached")


@needs_chromium
def test_answer_streams_charts_move_and_nothing_leaves_this_machine(
    browser: Browser, front: Front
) -> None:
    front.supervisor.n_let_pass = 2
    open_dashboard(browser, front)
    page = browser.page
    page.fill("#prompt", "Hello")
    page.keyboard.press("Enter")
    shows(page, "document.querySelector('.assistant .text')?.textContent.trim() === 'word0 word1'")
    front.supervisor.n_let_pass = math.inf
    shows(page, "document.querySelector('.assistant .cost').textContent.includes('tok/s')")
    assert page.inner_text(".assistant .text").split() == [f"word{n}" for n in range(30)]
    before = page.get_attribute("#charts figure:nth-child(2) path.line", "d")
    shows(
        page,
        "(before) => document.querySelector('#charts figure:nth-child(2) path.line')"
        "?.getAttribute('d') !== before",
        before,
    )
    assert "POM_5V_IN 2.44 W" in page.inner_text("#facts")
    assert page.locator("#rows tr").count() == 1
    assert browser.complaints == []
    assert {url.split("/")[2] for url in browser.requests} == {f"127.0.0.1:{front.port}"}


@needs_chromium
def test_stop_button_ends_the_answer_and_the_request(browser: Browser, front: Front) -> None:
    front.supervisor.pieces, front.supervisor.n_let_pass = ["go "] * 9, 4
    open_dashboard(browser, front)
    page = browser.page
    page.fill("#prompt", "Hello")
    page.click("#send")
    shows(page, "document.querySelector('.assistant .text')?.textContent.length > 5")
    page.click("#stop")
    shows(page, "document.querySelector('.assistant .cost').textContent === 'stopped'")
    until(lambda: front.supervisor.cancelled == 1)


@needs_chromium
def test_a_phone_has_no_sideways_scroll_and_the_keyboard_reaches_everything(
    browser: Browser, front: Front
) -> None:
    page = browser.page
    page.set_viewport_size({"width": 375, "height": 812})
    open_dashboard(browser, front)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.className")
        )
    assert reached[0] == "skip"
    assert {"model", "clear", "prompt", "send"} <= set(reached)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('select,textarea,input')].filter(e => !e.labels.length)"
        ".length"
    )
    assert unnamed == 0


def ask(page: Any, text: str = "Capital of India?") -> None:
    """Until the answer has its buttons."""
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn:last-child .verdict")


def press(page: Any, name: str) -> None:
    """By the keyboard: the button of the last answer with this accessible name."""
    page.get_by_role("button", name=name).last.focus()
    page.keyboard.press("Enter")


def stored(front: Front) -> list[dict[str, Any]]:
    return list(front.get("/v1/feedback").json()["feedback"])


@needs_chromium
def test_an_answer_is_rated_corrected_and_taken_back_by_the_keyboard(
    browser: Browser, front: Front
) -> None:
    front.supervisor.pieces = ["Mumbai"]
    open_dashboard(browser, front)
    page = browser.page
    ask(page)
    press(page, "Good answer")
    shows(page, "document.querySelector('#waiting').textContent.startsWith('1 good answer')")
    (row,) = stored(front)
    assert (row["rating"], row["user"], row["source"]) == ("up", "dashboard", "answer")
    assert page.get_by_role("button", name="Good answer").get_attribute("aria-pressed") == "true"

    press(page, "Bad answer")
    shows(page, "document.querySelector('.note').textContent.includes('bad')")
    shows(page, "document.querySelector('#waiting').hidden")
    assert [one["rating"] for one in stored(front)] == ["down"]

    press(page, "Correct")
    field = page.get_by_label("What the answer should have been")
    assert field.input_value() == "Mumbai"
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == "Correct…"
    assert [one["correction"] for one in stored(front)] == [None]
    page.keyboard.press("Enter")
    field.fill("New Delhi")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    shows(page, "document.querySelector('.note').textContent === 'Corrected to: New Delhi'")
    shows(page, "document.querySelector('#waiting').textContent.startsWith('1 correction w')")
    assert "Corrected to" in page.inner_text("#announce"), "not said aloud"
    (row,) = stored(front)
    assert (row["answer"], row["correction"]) == ("Mumbai", "New Delhi")

    press(page, "Bad answer")
    shows(page, "document.querySelector('.note').textContent.includes('bad')")
    press(page, "Bad answer")
    shows(page, "document.querySelector('.note').textContent === 'Taken back.'")
    assert stored(front) == []
    assert browser.complaints == []


@needs_chromium
def test_each_answer_has_its_own_buttons_and_the_right_chat(browser: Browser, front: Front) -> None:
    front.supervisor.pieces = ["one"]
    open_dashboard(browser, front)
    page = browser.page
    ask(page, "first")
    front.supervisor.pieces = ["two"]
    ask(page, "second")
    page.get_by_role("button", name="Good answer").first.click()
    page.get_by_role("button", name="Bad answer").last.click()
    shows(page, "document.querySelectorAll('[aria-pressed=true]').length === 2")
    chats = [[turn["content"] for turn in one["messages"]] for one in stored(front)]
    assert chats == [["first", "one", "second"], ["first"]]


@needs_chromium
def test_a_stopped_answer_can_be_corrected_but_not_called_good(
    browser: Browser, front: Front
) -> None:
    front.supervisor.pieces, front.supervisor.n_let_pass = ["go "] * 9, 4
    open_dashboard(browser, front)
    page = browser.page
    page.fill("#prompt", "Hello")
    page.keyboard.press("Enter")
    shows(page, "document.querySelector('.assistant .text')?.textContent.length > 5")
    page.click("#stop")
    page.wait_for_selector(".verdict")
    assert page.get_by_role("button", name="Good answer").count() == 0
    press(page, "Correct")
    page.get_by_label("What the answer should have been").fill("Stop.")
    page.get_by_role("button", name="Keep correction").click()
    shows(page, "document.querySelector('.note').textContent === 'Corrected to: Stop.'")
    (row,) = stored(front)
    assert row["answer"].startswith("go go") and row["correction"] == "Stop."


@needs_chromium
def test_the_memory_line_has_a_figure_for_the_worker(browser: Browser, front: Front) -> None:
    memory = "document.querySelector('#charts figure:nth-child(4) figcaption').textContent"
    open_dashboard(browser, front)
    shows(browser.page, f'{memory}.includes("worker\'s own not measured")')
    front.supervisor.status_now = replace(front.supervisor.status(), worker_pid=os.getpid())
    shows(browser.page, f"/worker's own [1-9][0-9.]* MiB/.test({memory})")


@needs_chromium
def test_a_full_quota_is_told_beside_the_buttons(browser: Browser, front: Front) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "A"}]}
        for n in range(front.settings.feedback_quota)
    ]
    open_dashboard(browser, front)
    page = browser.page
    done = page.evaluate(
        "rows => fetch('/v1/feedback/import', {method: 'POST',"
        " body: JSON.stringify({rows, model: 'tiny'}),"
        " headers: {'Content-Type': 'application/json'}}).then(answer => answer.status)",
        rows,
    )
    assert done == 200
    ask(page)
    press(page, "Good answer")
    page.wait_for_selector(".note.error")
    assert "no more feedback is taken from dashboard" in page.inner_text(".note.error")
    assert page.locator("[aria-pressed=true]").count() == 0


@needs_chromium
def test_a_daemon_that_takes_no_feedback_shows_no_buttons(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, feedback=False) as front:
        write_address(front)
        open_page(browser, front)
        browser.page.fill("#prompt", "Hello")
        browser.page.keyboard.press("Enter")
        shows(
            browser.page, "document.querySelector('.assistant .cost').textContent.includes('tok')"
        )
        assert browser.page.locator(".verdict").count() == 0


class Lesson:
    """What the dashboard sees of an LessonRunner, without one being learned."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {"state": "idle", "name": None}

    def status(self) -> dict[str, Any]:
        return self.run

    def pause(self) -> None:
        self.run = {**self.run, "state": "paused", "pause_reason": "paused by the user"}

    def resume(self, name: str | None) -> None:
        self.run = {**self.run, "state": "running", "pause_reason": None}

    def begin(self) -> None:
        progress = TrainingProgress(
            phase="train", step=42, n_steps=340, epoch=1.4, loss=1.2345, tok_s=152.0,
            validation_bits_per_byte=0.81, rss_anon_bytes=312 << 20, eta_s=1260.0, note="by night",
            joules_per_step=3.21,
        )  # fmt: skip
        head = {"state": "running", "name": "monday", "model": "tiny", "pause_reason": None}
        self.run = {**head, "progress": msgspec.to_builtins(progress), "result": None}

    def end(self, is_active: bool) -> None:
        gate = {"passed": is_active, "reasons": [] if is_active else ["it repeats itself"]}
        self.run |= {"state": "finished", "result": {"gate": gate, "is_active": is_active}}


@pytest.fixture
def lesson(monkeypatch: pytest.MonkeyPatch) -> Lesson:
    """Behind the daemon's own routes; to be asked for before `front`."""
    lesson, build = Lesson(), http_front.build_app

    def with_lesson(*args: Any, **named: Any) -> web.Application:
        app = build(*args, **named)
        app[ADAPTATION] = cast(LessonRunner, lesson)
        return app

    monkeypatch.setattr(http_front, "build_app", with_lesson)
    return lesson


@needs_chromium
def test_a_lesson_shows_itself_and_can_be_paused_and_resumed(
    lesson: Lesson, browser: Browser, front: Front
) -> None:
    open_dashboard(browser, front)
    page = browser.page
    assert page.locator("#learning").is_hidden()
    lesson.begin()
    shows(page, "!document.querySelector('#learning').hidden")
    shown = page.inner_text("#learning")
    for text in ("tiny:monday", "42 of 340", "1.23 nats", "0.810 bits per byte", "152 tok/s"):
        assert text in shown
    assert "21 min" in shown and "by night" in shown and "3.21 J a step" in shown
    assert page.evaluate("document.querySelector('progress').value") == 42
    press(page, "Pause")
    shows(page, "document.querySelector('#learning .state').textContent.includes('by the user')")
    assert page.evaluate("document.activeElement.textContent") == "Resume"
    page.keyboard.press("Enter")
    shows(page, "document.querySelector('#learning .state').textContent.endsWith('running')")
    lesson.end(is_active=False)
    shows(page, "document.querySelector('#learning .state').textContent.includes('repeats itself')")
    assert page.get_by_role("button", name="Pause").count() == 0
    assert browser.complaints == []


CONTRAST = """selector => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll(selector)].map((one) => {
    const ink = light(getComputedStyle(one).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  });
}"""
"""WCAG 2.2's contrast of each element's ink against the page's paper."""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_buttons_and_lesson_fit_a_phone_and_can_be_read(
    lesson: Lesson, browser: Browser, front: Front, scheme: Any
) -> None:
    front.supervisor.pieces = ["unbroken" * 40]
    lesson.begin()
    page = browser.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 375, "height": 812})
    open_dashboard(browser, front)
    ask(page)
    press(page, "Good answer")
    page.wait_for_selector("[aria-pressed=true]")
    press(page, "Correct")
    shows(page, "!document.querySelector('#learning').hidden")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    log = "document.querySelector('#turns')"
    assert page.evaluate(f"{log}.scrollWidth <= {log}.clientWidth")
    ratios = page.evaluate(
        CONTRAST, ".verdict button, .note, #waiting, #learning dt, .correction *"
    )
    assert len(ratios) > 10 and min(ratios) >= 4.5
    sizes = page.evaluate(
        "[...document.querySelectorAll('.verdict button')]"
        ".map(b => Math.min(b.offsetWidth, b.offsetHeight))"
    )
    assert min(sizes) >= 24, "WCAG 2.2's smallest target"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('textarea')].filter(e => !e.labels.length).length"
    )
    assert unnamed == 0


@needs_chromium
def test_errors_are_told_in_the_chat(browser: Browser, front: Front) -> None:
    from edge_agent.errors import WorkerFailed

    front.supervisor.error = WorkerFailed("the worker died", "signal 9", "ask again")
    open_dashboard(browser, front)
    browser.page.fill("#prompt", "Hello")
    browser.page.keyboard.press("Enter")
    browser.page.wait_for_selector(".cost.error")
    told = browser.page.inner_text(".cost.error")
    assert "the worker died" in told and "ask again" in told


def test_sessions_are_bounded_and_end() -> None:
    from edge_agent.server.session import CODE_S, MAX_LIVE, SESSION_S, Sessions

    now = [0.0]
    sessions = Sessions(lambda: now[0])
    codes = [sessions.code() for _ in range(MAX_LIVE + 1)]
    assert sessions.enter(codes[0]) is None, "the oldest gives way"
    cookie = sessions.enter(codes[-1])
    assert cookie is not None and sessions.is_valid(cookie)
    assert not sessions.is_valid(codes[1]) and sessions.enter(cookie) is None
    now[0] = CODE_S + 1
    assert sessions.enter(codes[5]) is None
    now[0] = SESSION_S + 1
    assert not sessions.is_valid(cookie)
