"""The chat page as a person uses it: what stands there, and what can be clicked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from selenium.common.exceptions import (
    StaleElementReferenceException,
    TimeoutException,
    WebDriverException,
)
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

DEADLINE_SECONDS = 60
Value = TypeVar("Value")


class ChatPage:
    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self) -> ChatPage:
        self.driver.get(self.url)
        return self.wait_usable()

    def wait_usable(self) -> ChatPage:
        """Loaded, and what the browser kept is shown."""
        self.eventually(lambda: self.kept() is not None and self.question.is_enabled())
        return self

    def eventually(self, condition: Callable[[], Value]) -> Value:
        ignored = (StaleElementReferenceException, WebDriverException, IndexError)
        wait = WebDriverWait(self.driver, DEADLINE_SECONDS, 0.05, ignored_exceptions=ignored)
        return wait.until(lambda driver: condition())

    def kept(self) -> list[dict[str, Any]] | None:
        """Conversations in local storage; None while the page has not begun."""
        script = (
            "return sessionStorage.getItem('qwen.active') && JSON.stringify("
            "Object.keys(localStorage).filter(key => key.startsWith('qwen.chat'))"
            ".map(key => JSON.parse(localStorage.getItem(key))))"
        )
        text = self.driver.execute_script(script)
        return None if text is None else json.loads(text)

    def log_in(self, key: str) -> None:
        self.eventually(lambda: self.find("input[name=key]"))
        self.find("input[name=key]").send_keys(key, Keys.ENTER)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText)"
        return [text.strip() for text in self.driver.execute_script(script, selector)]

    @property
    def question(self) -> WebElement:
        return self.find("#question textarea")

    def ask(self, text: str) -> None:
        self.eventually(lambda: self.question.is_enabled())
        lines = text.split("\n")
        for line in lines[:-1]:
            self.question.send_keys(line, Keys.SHIFT + Keys.ENTER)
        self.question.send_keys(lines[-1], Keys.ENTER)

    def questions(self) -> list[str]:
        return self.texts("#chat [data-testid=user]")

    def answers(self) -> list[str]:
        return self.texts("#chat [data-testid=bot]")

    def wait_answers(self, *expected: str) -> None:
        """All of them, each ended, and kept by the browser."""

        def are_there() -> bool:
            return self.answers() == list(expected) and self.is_idle()

        try:
            self.eventually(are_there)
        except TimeoutException:
            raise AssertionError(f"{self.answers()} instead of {list(expected)}") from None

    def is_idle(self) -> bool:
        return bool(self.driver.find_elements(By.CSS_SELECTOR, "#question .submit-button"))

    def click(self, selector: str) -> None:
        self._act(lambda: self.find(selector).click())

    def write(self, selector: str, *keys: str) -> None:
        self._act(lambda: self.find(selector).send_keys(*keys))

    def press(self, label: str, place: int = -1) -> None:
        """One of the buttons beside a message."""
        self._act(lambda: self.button(label, place).click())

    def edit(self, before: str, after: str) -> None:
        """The first question."""
        self.press("Edit", 0)
        area = self.eventually(lambda: self.find("#chat .edit-textarea"))
        self.eventually(lambda: area.get_attribute("value") == before)
        area.send_keys(Keys.CONTROL + "a" + Keys.NULL + after)
        self.press("Submit")

    def _act(self, act: Callable[[], None]) -> None:
        def has_acted() -> bool:
            act()
            return True

        self.eventually(has_acted)

    def button(self, label: str, place: int = -1) -> WebElement:
        buttons = self.driver.find_elements(By.CSS_SELECTOR, f"#chat button[aria-label='{label}']")
        return buttons[place]

    def titles(self) -> list[str]:
        return self.texts("#chats label")

    def is_dark(self) -> bool:
        return bool(self.driver.execute_script("return document.body.classList.contains('dark')"))
