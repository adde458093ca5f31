"""The chat page in a real browser, without a network."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from browser import chromium
from running import Running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    one = context.new_page()
    problems: list[str] = []
    one.on("pageerror", lambda error: problems.append(str(error)))
    # A refused request is logged by the browser itself; that is what one of the tests is about.
    one.on(
        "console",
        lambda it: (
            problems.append(it.text) if it.type == "error" and "Failed to load" not in it.text else None
        ),
    )
    asked: list[str] = []
    one.on("request", lambda request: asked.append(request.url))
    one.goto(server.url)
    one.wait_for_selector("#models input")
    yield one
    assert problems == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in asked), (
        "nothing is loaded from elsewhere"
    )
    context.close()


def settings(page: Any, **values: str) -> None:
    page.click("#settings-toggle")
    for name, value in values.items():
        page.fill(f"#{name}", value)
    page.click("#settings-toggle")


def say(page: Any, text: str) -> None:
    n_before = page.locator(".facts").count()
    page.fill("#message", text)
    page.press("#message", "Enter")
    page.wait_for_function(
        "n => document.querySelectorAll('.facts').length > n && document.querySelector('#send').textContent === 'Send'",
        arg=n_before,
    )


def test_files_of_the_page_are_served_with_a_strict_policy(http: httpx2.Client) -> None:
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        answer = http.get(path)
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http://" not in answer.text.replace("http://www.w3.org", "")
        assert "https://" not in answer.text


def test_reply_streams_and_the_conversation_goes_on(page: Any, http: httpx2.Client) -> None:
    settings(page, seed="1", max_tokens="20")
    say(page, "What is 2 + 3?")
    say(page, "And 4 + 5?")
    assert page.locator(".mine").all_inner_texts() == ["What is 2 + 3?", "And 4 + 5?"]
    assert page.locator(".facts").count() == 2
    assert "tokens" in page.locator(".facts").first.inner_text()
    assert page.locator("#status").inner_text() == "tiny has answered"


def test_models_answer_side_by_side(page: Any) -> None:
    settings(page, seed="1", max_tokens="15")
    page.locator("#models label", has_text="other").click()
    say(page, "Hello")
    assert page.locator(".reply .who").all_inner_texts() == ["tiny", "other"]
    boxes = [page.locator(".reply").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]


def test_probabilities_appear_at_the_pointer_and_by_keyboard(page: Any) -> None:
    settings(page, seed="1", max_tokens="12")
    page.click("#settings-toggle")
    page.check("#probabilities")
    page.click("#settings-toggle")
    say(page, "Hello")
    tokens = page.locator(".token")
    assert tokens.count() == 12
    tokens.nth(3).hover()
    assert page.locator("#likely").is_visible()
    assert page.locator("#likely div").count() in (5, 6)
    assert "%" in page.locator("#likely").inner_text()
    page.mouse.move(5, 400)
    assert not page.locator("#likely").is_visible()
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert tokens.nth(1).evaluate("it => it === document.activeElement")
    assert page.locator("#likely").is_visible()


def test_markup_in_a_message_stays_text(page: Any) -> None:
    settings(page, seed="1", max_tokens="3")
    say(page, "<img src=x onerror=alert(1)> <b>bold</b>")
    assert page.locator(".mine").inner_text() == "<img src=x onerror=alert(1)> <b>bold</b>"
    assert page.locator(".mine img, .mine b").count() == 0


def test_code_blocks_and_thoughts_and_calls_are_told_apart(page: Any) -> None:
    page.evaluate(
        """() => { const reply = {messages: [{role: "assistant", tokens: [], reasoning_content: "Hm.",
        content: "See `x`:\\n```python\\nprint(1)\\n```\\ndone", tool_calls: [{id: "1", type: "function",
        function: {name: "add", arguments: '{"a": 1}'}}]}], note: "", element: make("article")};
        $("log").append(reply.element); draw("tiny", reply); }"""
    )
    assert page.locator(".words pre").inner_text() == "print(1)\n"
    assert page.locator(".words > code").inner_text() == "x"
    assert page.locator("details.thought summary").inner_text() == "Thought"
    assert page.locator(".call strong").inner_text() == "add"
    assert page.get_by_label("Result of add").is_visible()


def test_conversation_is_exported(page: Any) -> None:
    settings(page, seed="1", max_tokens="8", system="Be brief.")
    say(page, "Hello")
    page.click("#export summary")
    with page.expect_download() as download:
        page.click("#export-json")
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    [conversation] = exported["conversations"]
    assert conversation["model"] == "tiny"
    assert [m["role"] for m in conversation["messages"]] == ["system", "user", "assistant"]
    page.click("#export summary")
    with page.expect_download() as download:
        page.click("#export-markdown")
    assert "## You\n\nHello" in Path(download.value.path()).read_text(encoding="utf-8")


def test_escape_stops_a_reply(browser: Any, slow: Running) -> None:
    def without_end(route: Any) -> None:
        asked = {**json.loads(route.request.post_data), "logit_bias": slow.no_end}
        route.continue_(post_data=json.dumps(asked))

    context = browser.new_context()
    page = context.new_page()
    page.route("**/v1/chat/completions", without_end)
    page.goto(slow.url)
    page.wait_for_selector("#models input")
    settings(page, max_tokens="16000")
    page.fill("#message", "Hello")
    page.press("#message", "Enter")
    page.wait_for_selector("#send:text('Stop')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:text('Send')")
    slow.wait_until_idle(5)
    assert "stopped" in page.locator(".reply").inner_text()
    context.close()


def test_mistake_of_a_setting_is_shown_where_the_reply_would_be(page: Any) -> None:
    settings(page, thinking_budget="-1")
    page.fill("#message", "Hello")
    page.press("#message", "Enter")
    page.wait_for_selector(".reply .error")
    assert "thinking_budget" in page.locator(".reply .error").inner_text()


def test_everything_is_reached_with_the_keyboard_and_has_a_name(page: Any) -> None:
    page.click("#settings-toggle")
    names: list[str] = []
    page.keyboard.press("Escape")
    page.click("#settings-toggle")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, select, summary")].filter((it) => {
        const label = it.labels?.[0]?.textContent ?? "";
        return !(label + (it.getAttribute("aria-label") ?? "") + it.textContent).trim(); }).map((it) => it.outerHTML)"""
    )
    assert unnamed == []
    page.locator("body").press("Tab")
    for _ in range(30):
        names.append(page.evaluate("() => document.activeElement.id"))
        page.keyboard.press("Tab")
    assert {"new", "theme", "settings-toggle", "message", "send", "temperature", "system"} <= set(names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_text_is_readable_and_nothing_overflows(
    browser: Any, server: Running, scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#models input")
    page.click("#settings-toggle")
    page.check("#probabilities")
    page.click("#settings-toggle")
    settings(page, seed="1", max_tokens="30", tools='[{"name": "add", "parameters": {}}]')
    say(page, "Hello " * 30)
    assert page.evaluate("() => $('log').scrollHeight - $('log').scrollTop - $('log').clientHeight") < 2
    # As surprising as a token can be: the darkest ground that one has.
    page.locator(".token").last.evaluate("it => { it.style.backgroundColor = 'rgb(var(--heat) / .55)'; }")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    contrast = page.evaluate(
        """() => { const parts = (c) => c.match(/[0-9.]+/g).map(Number);
        const ground = (it) => { const [r, g, b, a = 1] = parts(getComputedStyle(it).backgroundColor);
          if (a === 1) return [r, g, b]; const below = ground(it.parentElement);
          return [r, g, b].map((v, i) => a * v + (1 - a) * below[i]); };
        const light = (c) => { const [r, g, b] = c.map((v) => v / 255)
          .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
          return .2126 * r + .7152 * g + .0722 * b; };
        const names = ["body", ".mine", ".facts", "#send", ".hint", "#message::placeholder", ".token:last-child"];
        return names.map((name) => {
          const [at, pseudo] = name.split("::"); const it = document.querySelector(at);
          const [a, b] = [parts(getComputedStyle(it, pseudo && "::" + pseudo).color), ground(it)].map(light)
            .sort((x, y) => y - x);
          return (a + .05) / (b + .05); }); }"""
    )
    assert min(contrast) >= 4.5  # WCAG 2.2, AA
    context.close()
