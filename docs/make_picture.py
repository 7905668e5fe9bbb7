"""Takes docs/dashboard.png: the dashboard after a short chat with SmolLM2.

Flows in: the embedded SmolLM2-135M-Instruct, Chromium (apt-get install chromium). Flows out: one
picture of this machine as it is. No figure is made up: a machine without a power sensor shows no
watts. Everything else is made in a directory that is removed. Takes a minute on two cores.

    .venv/bin/python docs/make_picture.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "dashboard.png"
MODEL = "smollm2-135m"
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Japan?",
    "Name three colours of the rainbow.",
)
VIEW = {"width": 1180, "height": 800}


def edge_agent(environ: Mapping[str, str], *words: str) -> str:
    """Run one command; its stdout."""
    command = [sys.executable, "-m", "edge_agent.cli", *words]
    done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: `edge-agent {' '.join(words)}` failed")
    return done.stdout


@contextmanager
def daemon(environ: Mapping[str, str], state_dir: Path) -> Iterator[None]:
    """`edge-agent serve` until the block ends."""
    command = [sys.executable, "-m", "edge_agent.cli", "serve", "--port", "0", "--model", MODEL]
    with subprocess.Popen(command, cwd=ROOT, env=environ) as process:
        try:
            while not (state_dir / "run.json").exists():
                if process.poll() is not None:
                    raise SystemExit("error: the daemon did not start")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


def ask(page: Any, question: str) -> None:
    """Send a question in the chat and wait until the answer is complete."""
    page.fill("#prompt", question)
    page.click("#send")
    page.wait_for_selector("#stop", state="visible")
    page.wait_for_selector("#send", state="visible", timeout=300_000)
    page.wait_for_timeout(2_000)


def take(url: str) -> None:
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=VIEW)
        page.goto(url)
        page.wait_for_selector("#model option", state="attached")
        for question in QUESTIONS:
            ask(page, question)
        page.screenshot(path=str(PICTURE))
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        environ = {**os.environ, "EDGE_AGENT_STATE_DIR": directory, "EDGE_AGENT_THREADS": "1"}
        edge_agent(environ, "pull", f"embedded:{MODEL}")
        with daemon(environ, Path(directory)):
            take(edge_agent(environ, "dashboard").split()[0])
    sys.stdout.write(f"{PICTURE}: {PICTURE.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
