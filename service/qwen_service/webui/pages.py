"""The small pages that need no gradio: logging in, and waiting."""

from __future__ import annotations

from html import escape

from qwen_service.webui.texts import Texts

STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { display: grid; place-items: center; min-height: 100vh; margin: 0; }
main { width: min(22rem, 90vw); display: grid; gap: 1rem; }
h1 { font-size: 1.25rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 0; opacity: .75; line-height: 1.5; }
p.wrong { color: #dc2626; opacity: 1; }
form { display: grid; gap: .75rem; }
label { display: grid; gap: .35rem; font-size: .9rem; }
input, button { font: inherit; padding: .65rem .8rem; border-radius: .6rem; }
input, button { border: 1px solid #94a3b8; }
button { background: #4f46e5; color: #fff; border-color: #4f46e5; cursor: pointer; }
"""


def login(model: str, texts: Texts, *, is_wrong: bool = False) -> str:
    wrong = f'<p class="wrong" role="alert">{escape(texts.key_unknown)}</p>' if is_wrong else ""
    return _page(
        model,
        texts,
        f"<p>{escape(texts.key_why)}</p>{wrong}"
        '<form method="post" action="login"><label>'
        f"{escape(texts.api_key)}"
        '<input name="key" type="password" required autofocus autocomplete="current-password">'
        f"</label><button>{escape(texts.log_in)}</button></form>",
    )


def loading(model: str, texts: Texts, reason: str) -> str:
    body = f"<p>{escape(texts.loading)}</p><p>{escape(reason)}</p>"
    return _page(model, texts, body, head='<meta http-equiv="refresh" content="1">')


def no_chat(model: str, texts: Texts) -> str:
    return _page(model, texts, f"<p>{escape(texts.no_chat)}</p>")


def _page(model: str, texts: Texts, body: str, *, head: str = "") -> str:
    return (
        f'<!doctype html><html lang="{texts.html_language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{head}<title>{escape(model)}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{escape(model)}</h1>{body}</main></body></html>"
    )
