"""The page in Chromium, over a served model: conversations stream, stop stops, tiles move, no request leaves."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
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
PHONE = {"width": 390, "height": 844}
PICTURE = ROOT / "docs" / "images" / "page.png"
STORY = "Once upon a time"
LOW_CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number)
    .map((x, i) => (i < 3 && text.startsWith("color(") ? x * 255 : x));
  const linear = (x) => (x <= 10 ? x / 3294.6 : ((x / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const rgb = parse(getComputedStyle(element).backgroundColor);
      if (rgb.length && (rgb[3] ?? 1) > 0.5) return rgb;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return texts.filter((element) => {
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
  }).map((element) => `${element.tagName} ${element.className}: ${element.textContent.slice(0, 40)}`);
}"""
"""Texts whose contrast to what they stand on is below what WCAG's level AA asks for."""
NAMELESS = """() => [...document.querySelectorAll("button, input, textarea, [tabindex]")]
  .filter((element) => !element.getAttribute("aria-label") && !element.textContent.trim() && !element.closest("label"))
  .map((element) => element.outerHTML.slice(0, 80))"""
"""What the keyboard reaches and a screen reader has no name for."""
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]


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

    def __init__(self, browser: Any, server: Service, scheme: str = "light", size: Mapping[str, int] = SIZE) -> None:
        self.origin = f"http://{server.http_address()}"
        self.tab = browser.new_context(viewport=size, color_scheme=scheme).new_page()
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
        assert self.tab.evaluate(LOW_CONTRAST) == []
        assert self.tab.evaluate(NAMELESS) == []
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
    page.wait("document.querySelector('.failure') != null")
    assert "top_k" in page.tab.inner_text(".failure")
    page.choose("chat", top_k="")
    page.tab.click(".failure button")
    page.wait("document.querySelectorAll('.assistant:not(.writing)').length == 1")
    assert page.answer(), "it can be tried again"
    # The browser itself logs answers that are errors.
    page.problems = [problem for problem in page.problems if "status of 400" not in problem]
    page.check()


def event(delta: dict[str, Any], finish_reason: str | None = None) -> str:
    """An event of a stream of chat completions."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return f"data: {json.dumps({'choices': [choice], 'usage': {'completion_tokens': 7}})}\n\n"


def test_reasoning_markup_and_calls_are_shown_and_calls_are_answered(page: Page) -> None:
    table = "| city | degrees |\n| --- | --- |\n| Paris | 12 |\n"
    text = f"It is **mild**:\n\n{table}\n```python\nprint('<b>')\n```\n- one\n- two\n"
    call = {"index": 0, "id": "c1", "function": {"name": "get_weather", "arguments": '{"city": '}}
    answer = [
        event({"reasoning_content": "I look it up."}),
        event({"content": text}),
        event({"tool_calls": [call]}),
        event({"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]}, "tool_calls"),
        "data: [DONE]\n\n",
    ]
    asked: list[dict[str, Any]] = []

    def serve_answer(route: Any) -> None:
        asked.append(route.request.post_data_json)
        route.fulfill(content_type="text/event-stream", body="".join(answer))

    page.tab.route("**/v1/chat/completions", serve_answer)
    page.choose("chat", tools=json.dumps(TOOLS))
    page.say("How is the weather?")
    page.wait("document.querySelector('.results') != null")
    assert asked[0]["tools"] == TOOLS
    assert "I look it up." in page.tab.locator(".reasoning div").text_content()
    assert page.tab.inner_text(".assistant strong") == "mild"
    assert page.tab.locator(".assistant td").all_inner_texts() == ["Paris", "12"]
    assert page.tab.locator(".assistant li").all_inner_texts() == ["one", "two"]
    assert page.tab.inner_text(".assistant .code pre") == "print('<b>')", "nothing of a model's is HTML"
    assert page.tab.inner_text(".call h3").endswith("get_weather")
    assert json.loads(page.tab.inner_text(".call pre")) == {"city": "Paris"}
    page.tab.fill(".results textarea", "12 degrees")
    page.tab.click(".results button")
    page.wait("document.querySelectorAll('.assistant:not(.writing)').length == 2")
    assert [message["role"] for message in asked[1]["messages"]] == ["user", "assistant", "tool"]
    assert asked[1]["messages"][2] == {"role": "tool", "tool_call_id": "c1", "content": "12 degrees"}
    assert asked[1]["messages"][1]["tool_calls"][0]["function"]["name"] == "get_weather"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_room_for_everything(browser: Any, server: Service, scheme: str) -> None:
    page = Page(browser, server, scheme, PHONE)
    page.tab.click("#ideas button:first-child")
    page.wait("document.querySelectorAll('.assistant:not(.writing)').length == 1")
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for name in ("theme", "settings", "new", "send"):
        box = page.tab.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
    page.tab.click("#settings")
    assert page.tab.locator("#parameters").bounding_box()["width"] == PHONE["width"]
    page.tab.keyboard.press("Escape")
    assert page.tab.is_hidden("#parameters")
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
    page.tab.wait_for_timeout(700)
    picture = page.tab.screenshot()
    page.tab.keyboard.press("Escape")
    page.wait("document.querySelectorAll('.writing').length == 0")
    assert picture.startswith(b"\x89PNG")
    # What it shows differs from run to run, so the picture of the docs is written only when that is asked for.
    if scheme == "light" and os.environ.get("PAGEWIRE_WRITE_PICTURES") == "1":
        PICTURE.write_bytes(picture)
    page.check()
