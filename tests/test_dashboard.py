"""The dashboard in a real browser: Debian's Chromium, headless, on the real front's sockets."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from board_writer import copied_board
from fake_engine import FakeSupervisor
from http_front import Front, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HTML = {"Accept": "text/html,application/xhtml+xml"}
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium"
)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    pieces = [f"word{n} " for n in range(30)]
    supervisor = FakeSupervisor(pieces=pieces, pause_s=0.02)
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
        page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(20_000)
        yield Browser(page)
        chromium.close()


def until(page: Any, expression: str, arg: Any = None) -> None:
    """Poll from here: wait_for_function needs eval, which the page's policy forbids."""
    deadline = time.monotonic() + 15
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, f"never came true: {expression}"
        time.sleep(0.05)


def open_dashboard(browser: Browser, front: Front) -> None:
    browser.page.goto(link(front))
    browser.page.wait_for_selector("#charts svg path.line", state="attached")


@needs_chromium
def test_answer_streams_charts_move_and_nothing_leaves_this_machine(
    browser: Browser, front: Front
) -> None:
    open_dashboard(browser, front)
    page = browser.page
    page.fill("#prompt", "Hello")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.assistant .text')[0]?.textContent.length > 5")
    early = page.inner_text(".assistant .text")
    assert "word29" not in early, "the answer came in one piece"
    until(page, "document.querySelector('.assistant .cost').textContent.includes('tok/s')")
    assert page.inner_text(".assistant .text").split() == [f"word{n}" for n in range(30)]
    before = page.get_attribute("#charts figure:nth-child(2) path.line", "d")
    until(
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
    front.supervisor.pieces = ["go "] * 2000
    open_dashboard(browser, front)
    page = browser.page
    page.fill("#prompt", "Hello")
    page.click("#send")
    until(page, "document.querySelector('.assistant .text')?.textContent.length > 5")
    page.click("#stop")
    until(page, "document.querySelector('.assistant .cost').textContent === 'stopped'")
    deadline = time.monotonic() + 5
    while not front.supervisor.cancelled and time.monotonic() < deadline:
        time.sleep(0.05)
    assert front.supervisor.cancelled == 1


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
