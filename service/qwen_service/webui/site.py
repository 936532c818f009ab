"""The door to the chat page: who is let in, and by which path.

Knows neither gradio, but for `starting`, nor what the page does.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_service.lifecycle.readiness import Readiness
from qwen_service.settings import Settings
from qwen_service.webui import pages, texts
from qwen_service.webui.fence import ASSETS, CALLS, marked, page_of
from qwen_service.webui.sessions import KeyRing, Session, Sessions
from qwen_service.webui.starting import Starting
from qwen_service.webui.texts import Texts

STATIC = Path(__file__).parent / "static"
OWN_FILES = {
    "/favicon.ico": "icon.svg",
    "/ui/icon.svg": "icon.svg",
    "/ui/page.js": "page.js",
    "/ui/style.css": "style.css",
}
OWN_PAGES = ("/", "/login", "/logout")
# Where handlers of the page's events find what stands for the caller's key.
TOKEN = "qwen_webui_token"
MOST_LOGIN_BYTES = 4096


class Site:
    """Answers the page's own paths; all others are the application's."""

    def __init__(
        self, app: ASGIApp, *, settings: Settings, readiness: Readiness, keys: KeyRing | None
    ) -> None:
        self._app = app
        self._model = settings.model_name
        self._most_bytes = settings.max_body_bytes
        self._readiness = readiness
        self._sessions = Sessions(keys) if keys else None
        self._starting = Starting(settings, readiness, has_login=keys is not None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_of_site(scope["path"]):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        cookie = request.cookies.get(texts.COOKIE, "")
        words = texts.choose(cookie, request.headers.get("accept-language", ""))
        answer = await self._answer(request, words)
        await answer(scope, receive, marked(send))

    async def _answer(self, request: Request, words: Texts) -> ASGIApp:
        path = request.url.path
        if refusal := self._refusal(request):
            return refusal
        if path in OWN_FILES:
            return FileResponse(STATIC / OWN_FILES[path], headers={"cache-control": "no-cache"})
        if path == "/login":
            return await self._log_in(request, words)
        if path == "/logout":
            return self._log_out(request)
        self._starting.wish()
        session = self._sessions.find(_cookie(request)) if self._sessions else None
        if self._sessions and not session and not ASSETS.fullmatch(path):
            if path == "/":
                return _html(pages.login(self._model, words))
            return PlainTextResponse("log in first", 401)
        return await self._gradio(request, words, session)

    def _refusal(self, request: Request) -> Response | None:
        if request.method in ("GET", "HEAD"):
            return None
        if request.method != "POST":
            return PlainTextResponse("GET or POST", 405)
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            return PlainTextResponse("this came from another site", 403)
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return PlainTextResponse("a length is needed", 411)
        if len(length) > 18 or int(length) > self._most_bytes:
            return PlainTextResponse("too much", 413)
        return None

    async def _gradio(self, request: Request, words: Texts, session: Session | None) -> ASGIApp:
        path = request.url.path
        facts = self._readiness.facts
        if path == "/" and facts and facts.kind == "embedding":
            return _html(pages.no_chat(self._model, words))
        page = self._starting.pages.get(words.language)
        if page is None:
            if path == "/":
                reason = self._starting.failure or self._readiness.reason
                return _html(pages.loading(self._model, words, reason))
            return PlainTextResponse("not loaded yet", 503, {"retry-after": "1"})
        if path == "/":
            owner = session.name if session else None
            answer = await page_of(page.app, dict(request.scope), words, owner)
            answer.headers["cache-control"] = "no-store"
            return answer
        request.scope[TOKEN] = session.token if session else None
        return page.app

    async def _log_in(self, request: Request, words: Texts) -> Response:
        if request.method != "POST" or self._sessions is None:
            return RedirectResponse("/", 303)
        if int(request.headers["content-length"]) > MOST_LOGIN_BYTES:
            return PlainTextResponse("too much", 413)
        fields = parse_qs((await request.body()).decode("utf-8", "replace"))
        cookie = self._sessions.open(fields.get("key", [""])[0].strip())
        if cookie is None:
            return _html(pages.login(self._model, words, is_wrong=True), 401)
        answer = RedirectResponse("/", 303)
        is_secure = request.url.scheme == "https"
        answer.set_cookie(
            _cookie_name(request), cookie, httponly=True, samesite="lax", secure=is_secure
        )
        return answer

    def _log_out(self, request: Request) -> Response:
        if request.method == "POST" and self._sessions:
            self._sessions.close(_cookie(request))
        answer = RedirectResponse("/", 303)
        if request.method == "POST":
            answer.delete_cookie(_cookie_name(request), httponly=True, samesite="lax")
        return answer


def _is_of_site(path: str) -> bool:
    own = path in OWN_PAGES or path in OWN_FILES
    return own or bool(ASSETS.fullmatch(path) or CALLS.fullmatch(path))


def _cookie_name(request: Request) -> str:
    # Cookies know no ports, and tunnels to several hosts end at one address.
    return f"qwen-session-{request.url.port or request.url.scheme}"


def _cookie(request: Request) -> str:
    return request.cookies.get(_cookie_name(request), "")


def _html(page: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(page, status, {"cache-control": "no-store"})
