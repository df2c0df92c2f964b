"""The page in Chromium, over a served model: conversations stream, stop stops, tiles move, no request leaves."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Service, serve
from operate_tools import OPERATE, ROOT, require_tool, set_up

pytestmark = pytest.mark.operate

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SIZE = {"width": 1100, "height": 760}
PICTURE = ROOT / "docs" / "images" / "page.png"
STORY = "Once upon a time"


@pytest.fixture(scope="module")
def server() -> Iterator[Service]:
    set_up("browser")
    # A small pool, so that its use shows.
    with serve(Path("demo"), "--http-port", "0", "--kv-cache-memory", "16MiB") as service:
        yield service


@pytest.fixture(scope="module")
def browser(server: Service) -> Iterator[Any]:
    sys.path.insert(0, str(OPERATE / "browser"))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(require_tool("chromium")), args=list(FLAGS))
        yield browser
        browser.close()
    sys.path.remove(str(OPERATE / "browser"))


class Page:
    """The page in a tab of its own, what it has asked for and what went wrong in it."""

    def __init__(self, browser: Any, server: Service, scheme: str = "light") -> None:
        self.origin = f"http://{server.http_address()}"
        self.tab = browser.new_context(viewport=SIZE, color_scheme=scheme).new_page()
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("console", lambda message: self.problems.append(message.text))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.goto(self.origin)
        self.wait("document.getElementById('state').textContent == 'serving'")

    def wait(self, condition: str) -> None:
        # Playwright's own wait evaluates text within the page, which its security policy forbids.
        deadline_s = time.monotonic() + 60
        while not self.tab.evaluate(condition):
            assert time.monotonic() < deadline_s, f"{condition}\n{self.problems}"
            self.tab.wait_for_timeout(20)

    def say(self, text: str) -> None:
        self.tab.fill("#input", text)
        self.tab.press("#input", "Enter")

    def choose(self, mode: str, **values: str) -> None:
        if self.tab.is_hidden("#parameters"):
            self.tab.keyboard.press("Alt+KeyP")
        self.tab.check(f"input[value={mode}]")
        for name, value in values.items():
            self.tab.fill(f"[name={name}]", value)

    def answer(self) -> str:
        text: str = self.tab.inner_text(".assistant:last-child .body")
        return text

    def figures(self) -> str:
        text: str = self.tab.inner_text(".assistant:last-child .figures")
        return text

    def check(self) -> None:
        """Nothing went wrong, and nobody else was asked."""
        assert self.problems == []
        assert {url for url in self.requests if not url.startswith((f"{self.origin}/", "data:"))} == set()
        self.tab.context.close()


@pytest.fixture
def page(browser: Any, server: Service) -> Iterator[Page]:
    page = Page(browser, server)
    yield page
    page.check()


def write_without_end(page: Page) -> None:
    """Begins an answer that goes on for long, since the model's own end does not count."""

    def add_ignore_eos(route: Any) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))

    page.tab.route("**/v1/completions", add_ignore_eos)
    page.choose("text", temperature="0.8", max_tokens="2000", seed="1")
    page.say(STORY)
    page.wait("document.querySelectorAll('.writing').length == 1")


def test_a_conversation_streams(page: Page) -> None:
    for number, question in enumerate(("How many months are in a year?", "And days in a week?"), start=1):
        page.say(question)
        page.wait(f"document.querySelectorAll('.assistant:not(.writing)').length == {number}")
        assert page.answer()
        assert "first token" in page.figures()
    assert page.tab.locator(".user").count() == 2
    assert page.tab.input_value("#input") == ""
    page.tab.keyboard.press("Alt+KeyN")
    assert page.tab.locator(".message").count() == 0


def test_text_grows_until_it_is_stopped(page: Page) -> None:
    write_without_end(page)
    lengths = []
    for _ in range(3):
        lengths.append(len(page.answer()))
        page.wait(f"document.querySelector('.assistant:last-child .body').innerText.length > {lengths[-1] + 20}")
    page.tab.keyboard.press("Escape")
    page.wait("document.querySelectorAll('.writing').length == 0")
    assert "stopped" in page.figures()
    assert "tokens per second" in page.figures()
    assert page.answer().startswith(STORY)
    stopped_at = page.answer()
    page.wait("document.getElementById('tile-running').textContent == '0'")
    assert page.answer() == stopped_at


def test_the_tiles_move(page: Page) -> None:
    assert page.tab.inner_text("#tile-running") == "0"
    write_without_end(page)
    page.wait("document.getElementById('tile-running').textContent == '1'")
    page.wait("Number(document.getElementById('tile-rate').textContent) > 0")
    page.wait("document.getElementById('tile-cache').textContent != '0.0 %'")
    assert "group 0" in page.tab.inner_text("#groups")
    page.tab.click("#stop")
    page.wait("document.getElementById('tile-running').textContent == '0'")


def test_an_error_is_told_in_words(browser: Any, server: Service) -> None:
    page = Page(browser, server)
    page.choose("chat", top_k="-5")
    page.say("Hello")
    page.wait("document.querySelector('.figures.error') != null")
    assert "top_k" in page.figures()
    # The browser itself logs answers that are errors.
    page.problems = [problem for problem in page.problems if "status of 400" not in problem]
    page.check()


def test_settings_outlive_the_page_but_the_key_does_not_leave_the_tab(page: Page) -> None:
    page.choose("text", temperature="0.25", key="secret")
    page.tab.keyboard.press("Alt+KeyT")
    page.tab.reload()
    page.wait("document.getElementById('state').textContent == 'serving'")
    assert page.tab.input_value("[name=temperature]") == "0.25"
    assert page.tab.get_attribute("html", "data-theme") == "dark"
    assert "secret" not in page.tab.evaluate("JSON.stringify(localStorage)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_looks_as_in_the_docs(browser: Any, server: Service, scheme: str) -> None:
    page = Page(browser, server, scheme)
    page.say("How many months are in a year?")
    page.wait("document.querySelectorAll('.assistant:not(.writing)').length == 1")
    write_without_end(page)
    page.wait("Number(document.getElementById('tile-rate').textContent) > 0")
    page.tab.wait_for_timeout(4000)
    picture = page.tab.screenshot()
    page.tab.keyboard.press("Escape")
    page.wait("document.querySelectorAll('.writing').length == 0")
    assert picture.startswith(b"\x89PNG")
    # What it shows differs from run to run, so the picture of the docs is written only when that is asked for.
    if scheme == "light" and os.environ.get("PAGEWIRE_WRITE_PICTURES") == "1":
        PICTURE.write_bytes(picture)
    page.check()
