"""How answers are shown, and that nothing in them reaches another host: over an engine that says
the question back."""

from __future__ import annotations

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from tests.browser.chat_page import ChatPage
from tests.browser.chromium import complaints, requested
from tests.browser.elsewhere import Elsewhere
from tests.running_service import RunningService

pytestmark = pytest.mark.browser

CODE = "```python\ndef add(a, b):\n    return a + b\n```"
EVIL = (
    "![x](http://pictures.example/x.png) <img src='http://pictures.example/y.png'> "
    "<script src='http://scripts.example/z.js'></script> <b onclick='alert(1)'>List<int></b>"
    # Code in the eyes of the service, not in those of gradio.
    "\n\n`a\n\n<img src='/x' onerror='alert(1)'>\n\nb`"
)


def pasted(page: ChatPage) -> str:
    page.question.send_keys(Keys.CONTROL + "v")
    text = str(page.question.get_attribute("value"))
    page.question.clear()
    return text


def answer_elements(page: ChatPage, selector: str) -> int:
    return len(page.driver.find_elements("css selector", f"#chat .bot-row {selector}"))


def test_code_is_highlighted_and_copied_and_so_is_an_answer(echo_page: ChatPage) -> None:
    echo_page.ask(CODE)
    echo_page.eventually(lambda: answer_elements(echo_page, "pre .token.keyword") > 0)
    echo_page.eventually(echo_page.is_idle)
    echo_page.click("#chat .bot-row .copy_code_button")
    echo_page.eventually(lambda: pasted(echo_page).rstrip() == "def add(a, b):\n    return a + b")
    text = "Take a **List<int>** of $x^2$ & `b`"
    echo_page.ask(text)
    echo_page.eventually(lambda: len(echo_page.answers()) == 2 and echo_page.is_idle())
    assert "List<int>" in echo_page.answers()[1]
    echo_page.press("Copy message")
    echo_page.eventually(lambda: pasted(echo_page) == text)


def test_formulas_are_set_and_prices_are_not(echo_page: ChatPage) -> None:
    echo_page.ask(r"$$\frac{1}{2}$$ and \(a<b\) and $x^2$ cost $5 and $6 each")
    echo_page.eventually(lambda: answer_elements(echo_page, ".katex-display .katex") == 1)
    echo_page.eventually(lambda: answer_elements(echo_page, ".katex") == 3)
    assert "cost $5 and $6 each" in echo_page.answers()[0]


def test_html_in_an_answer_is_text_and_no_other_host_is_asked(
    echo_page: ChatPage, elsewhere: Elsewhere
) -> None:
    echo_page.ask(EVIL)
    echo_page.eventually(lambda: echo_page.answers() and echo_page.is_idle())
    assert "<b onclick='alert(1)'>List<int></b>" in echo_page.answers()[0]
    assert "![x](http://pictures.example/x.png)" in echo_page.answers()[0]
    echo_page.click("#dark")
    echo_page.click("#settings button")
    echo_page.click("#language")
    echo_page.eventually(lambda: echo_page.find("#new").text == "新对话")
    echo_page.wait_usable()
    echo_page.eventually(lambda: "List<int>" in echo_page.answers()[0])

    seen = requested(echo_page.driver)
    assert any("/gradio_api/queue/join" in url for url in seen)
    assert {url for url in seen if not url.startswith(f"{echo_page.url}/")} == set()
    assert f"{echo_page.url}/x" not in seen
    assert elsewhere.asked == []


def test_html_in_an_edited_question_is_text_from_the_first_moment_on(echo_page: ChatPage) -> None:
    evil = "<img src=x onerror=alert(1)><p onclick=alert(2)> &lt; `<b>`"
    echo_page.ask(evil)
    echo_page.eventually(lambda: echo_page.answers() and echo_page.is_idle())
    requested(echo_page.driver)
    echo_page.edit(evil, f"{evil}?")
    echo_page.eventually(lambda: "?" in echo_page.answers()[0] and echo_page.is_idle())
    shown = "<img src=x onerror=alert(1)><p onclick=alert(2)> < <b>?"
    assert (echo_page.questions(), echo_page.answers()) == ([shown], [shown])
    (kept,) = echo_page.kept() or [{}]
    assert [turn["content"] for turn in kept["turns"]] == [f"{evil}?", f"{evil}?"]
    assert f"{echo_page.url}/x" not in requested(echo_page.driver)
    assert complaints(echo_page.driver) == []


def test_another_host_would_have_been_seen(
    browser: Chrome, echo_service: RunningService, elsewhere: Elsewhere
) -> None:
    # A page of the same service that has no policy.
    browser.get(f"{echo_service.url}/health")
    script = "document.body.append(Object.assign(new Image(), {src: arguments[0]}))"
    browser.execute_script(script, "http://pictures.example/x.png")
    try:
        echo_service.eventually(lambda: elsewhere.asked)
        assert elsewhere.asked == ["GET http://pictures.example/x.png HTTP/1.1"]
        assert "http://pictures.example/x.png" in requested(browser)
        assert any("502" in complaint for complaint in complaints(browser))
    finally:
        elsewhere.asked.clear()


def test_what_gradio_could_do_besides_is_shut(echo_service: RunningService, key: str) -> None:
    paths = [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://pictures.example/"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/mcp/"),
        ("GET", "/monitoring"),
        ("GET", "/manifest.json"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/run/ask"),
        ("POST", "/gradio_api/call/ask"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/vibe-edit"),
    ]
    with echo_service.client() as client:
        assert client.post("/login", data={"key": key}).status_code == 303
        assert client.get("/").status_code == 200
        answers = {path: client.request(method, path).status_code for method, path in paths}
    assert answers == {path: 404 for _, path in paths}
