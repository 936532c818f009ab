"""Debian's Chromium, driven by its own driver; selenium fetches nothing.

What its pages ask beyond this machine's loopback goes to a proxy that the tests watch; what
Chromium asks for itself, whatever it is told not to, goes nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import websocket
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-client-side-phishing-detection",
    "--disable-features=AutofillServerCommunication,MediaRouter,OptimizationHints,Translate",
    "--disable-sync",
    "--window-size=1280,860",
)
# What gradio says of an answer that it still waits for when its page is left.
LAST_WORDS = ("AbortError: signal is aborted without reason", '"Connection errored out. "')
# The port of "discard", where nothing listens.
NOWHERE = "http://127.0.0.1:9"


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        *ARGUMENTS,
        f"--user-data-dir={profile}",
        f"--proxy-server={NOWHERE}",
        "--lang=en-US",
        "about:blank",
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"intl.accept_languages": "en-US"})
    options.set_capability("goog:loggingPrefs", {"browser": "WARNING", "performance": "ALL"})
    driver = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def fresh_window(driver: Chrome, proxy: str) -> Iterator[None]:
    """A window of a profile of its own, which ends with it."""
    first = driver.current_window_handle
    ways = {"proxyServer": f"http://{proxy}", "proxyBypassList": "127.0.0.1"}
    profile = _told(driver, "Target.createBrowserContext", **ways)
    window = _told(driver, "Target.createTarget", url="about:blank", newWindow=True, **profile)
    driver.switch_to.window(window["targetId"])
    try:
        yield
    finally:
        driver.switch_to.window(first)
        _told(driver, "Target.disposeBrowserContext", **profile)


def _told(driver: Chrome, method: str, **parameters: Any) -> dict[str, Any]:
    """What Chromium as a whole answers; the driver itself only speaks for one window."""
    debugger = driver.capabilities["goog:chromeOptions"]["debuggerAddress"]
    address = httpx.get(f"http://{debugger}/json/version").json()["webSocketDebuggerUrl"]
    connection = websocket.create_connection(address, suppress_origin=True)
    try:
        connection.send(json.dumps({"id": 1, "method": method, "params": parameters}))
        while "id" not in (message := json.loads(connection.recv())):
            pass
    finally:
        connection.close()
    result: dict[str, Any] = message["result"]
    return result


def open_tab(driver: Chrome) -> None:
    """Beside the tab that is open, in the same profile."""
    before = set(driver.window_handles)
    driver.execute_script("window.open('about:blank')")
    (tab,) = set(driver.window_handles) - before
    driver.switch_to.window(tab)


def complaints(driver: Chrome) -> list[str]:
    """Warnings and errors that pages left in the console since the last time."""
    entries = driver.get_log("browser")  # type: ignore[no-untyped-call]
    messages = (str(entry["message"]) for entry in entries)
    return [one for one in messages if not any(last in one for last in LAST_WORDS)]


def requested(driver: Chrome) -> list[str]:
    """Addresses that pages asked for since the last time; those that a policy stopped are not."""
    sent: dict[str, str] = {}
    stopped: set[str] = set()
    for entry in driver.get_log("performance"):  # type: ignore[no-untyped-call]
        message: dict[str, Any] = json.loads(entry["message"])["message"]
        parameters = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            sent[parameters["requestId"]] = parameters["request"]["url"]
        elif message["method"] == "Network.loadingFailed" and parameters.get("blockedReason"):
            stopped.add(parameters["requestId"])
    return [
        url
        for identity, url in sent.items()
        if identity not in stopped and url.startswith(("http", "ws"))
    ]
