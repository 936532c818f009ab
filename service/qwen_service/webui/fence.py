"""What of gradio is open to browsers, and what they are told about its page.

Knows neither who is logged in nor what the page does.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape

from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Scope, Send

from qwen_service.webui.texts import Texts

# All that the page asks for; gradio's other routes read files, fetch addresses and take uploads.
ASSETS = re.compile(r"/assets/[\w.-]+|/static/[\w./-]+|(?:/gradio_api)?/theme\.css", re.ASCII)
CALLS = re.compile(
    r"/config/?|/gradio_api/(?:queue/(?:join|data)|heartbeat/\w+|cancel|reset|startup-events"
    r"|login_check|app_id)/?",
    re.ASCII,
)
INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
# What says that this is gradio's, and how to install it as an app.
ABOUT_GRADIO = re.compile(
    rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*|<link rel="manifest"[^>]*>\s*', re.DOTALL
)
POLICY = (
    "default-src 'self'; script-src 'self'{scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; frame-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
MARKS = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def marked(send: Send) -> Send:
    """With the headers that every answer of the site has."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("content-security-policy", POLICY.format(scripts=""))
            for name, value in MARKS.items():
                headers[name] = value
        await send(message)

    return send_marked


async def page_of(app: ASGIApp, scope: Scope, texts: Texts, owner: str | None) -> HTMLResponse:
    """Gradio's page with the site's own script first, and no script but those that it came with."""
    body = bytearray()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        body.extend(message.get("body", b""))

    headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
    await app({**scope, "method": "GET", "headers": headers}, receive, send)
    page = ABOUT_GRADIO.sub(b"", bytes(body))
    page = page.replace(b'lang="en"', _attributes(texts, owner).encode(), 1)
    page = page.replace(b"<head>", b"<head>" + HEAD, 1)
    hashes = {hashlib.sha256(match[1]).digest() for match in INLINE_SCRIPT.finditer(page)}
    # Gradio compiles the page's own handlers at run time; what others wrote stays text.
    scripts = "".join(f" 'sha256-{base64.b64encode(one).decode()}'" for one in sorted(hashes))
    policy = POLICY.format(scripts=f"{scripts} 'unsafe-eval'")
    return HTMLResponse(page, headers={"content-security-policy": policy})


HEAD = (
    b'<link rel="icon" href="/ui/icon.svg"><link rel="stylesheet" href="/ui/style.css">'
    b'<script src="/ui/page.js"></script>'
)


def _attributes(texts: Texts, owner: str | None) -> str:
    said: Mapping[str, str] = {
        "lang": texts.html_language,
        "data-title-asked": texts.title_asked,
        "data-sure-to-delete": texts.sure_to_delete,
        "data-sure-to-log-out": texts.sure_to_log_out,
        "data-copied": texts.copied,
        **({"data-owner": owner} if owner else {}),
    }
    return " ".join(f'{name}="{escape(value)}"' for name, value in said.items())
