"""The page itself, in gradio's components, in one language. Importing it takes seconds.

What needs no answer of the model happens in the browser alone: `static/page.js`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Before gradio reads it: nothing of this process asks another host for anything.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI
from gradio.routes import App, mount_gradio_app

from qwen_service.webui.chatting import Chatting
from qwen_service.webui.texts import Texts

# No font comes from anywhere but the reader's own machine.
SANS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
# Tags that gradio shows as text where they got past `markup`, which does not know all of Markdown.
FETCHING = [
    "applet",
    "audio",
    "base",
    "embed",
    "feimage",
    "form",
    "frame",
    "iframe",
    "image",
    "img",
    "link",
    "meta",
    "object",
    "picture",
    "portal",
    "script",
    "source",
    "style",
    "track",
    "use",
    "video",
]
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
MOST_EVENTS = 4096
POLL_SECONDS = 0.02
# The service itself decides how many answers are made at a time.
EVENT: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_limit": None,
}


@dataclass(frozen=True, slots=True)
class Page:
    """One page and what it does."""

    app: App
    chatting: Chatting


@dataclass(frozen=True, slots=True)
class Side:
    chats: gr.Radio
    new: gr.Button
    follow: gr.Button
    rename: gr.Button
    delete: gr.Button
    settings: Sequence[gr.Textbox | gr.Checkbox]
    dark: gr.Button
    language: gr.Button
    log_out: gr.Button


def make_page(model: str, texts: Texts, *, thinks: bool, has_login: bool) -> Page:
    chatting = Chatting(model, texts, thinks=thinks)
    with gr.Blocks(title=model, fill_height=True, fill_width=True, analytics_enabled=False) as page:
        conversation = gr.JSON(visible="hidden", elem_id="conversation")
        with gr.Sidebar(width=290):
            side = _side(model, texts, thinks=thinks, has_login=has_login)
        chatbot = _chatbot(model, texts)
        question = gr.Textbox(
            placeholder=texts.question,
            show_label=False,
            container=False,
            lines=1,
            max_lines=10,
            submit_btn=True,
            elem_id="question",
        )
        kept = texts.kept_until_logout if has_login else texts.kept
        gr.Markdown(f"{texts.caution} {kept}", elem_id="caution")
        _wire_answers(page, chatting, side, (question, chatbot, conversation))
        _wire_browser(page, chatting, side, (question, chatbot, conversation))
    page.queue(default_concurrency_limit=None, api_open=False)
    # As it comes, gradio runs 40 events at a time, answers that wait for a place among them, and
    # looks a thousand times a second for more.
    page._queue.max_thread_count = MOST_EVENTS
    page._queue.sleep_when_free = POLL_SECONDS
    return Page(_app(page), chatting)


def _chatbot(model: str, texts: Texts) -> gr.Chatbot:
    return gr.Chatbot(
        label=model,
        show_label=False,
        container=False,
        elem_id="chat",
        height="100%",
        scale=1,
        layout="bubble",
        editable="user",
        latex_delimiters=LATEX,
        buttons=["copy"],
        placeholder=f"# {model}\n{texts.welcome}",
        sanitize_html=True,
        allow_tags=FETCHING,
        allow_file_downloads=False,
        feedback_options=None,
        group_consecutive_messages=True,
    )


def _side(model: str, texts: Texts, *, thinks: bool, has_login: bool) -> Side:
    gr.Markdown(f"## {model}", elem_id="model")
    new = gr.Button(texts.new_chat, variant="primary", elem_id="new")
    # What the browser presses when another tab went on with what this one shows.
    follow = gr.Button(visible="hidden", elem_id="follow")
    chats = gr.Radio([], label=texts.chats, elem_id="chats", show_label=True)
    with gr.Row():
        rename = gr.Button(texts.rename, size="sm", elem_id="rename", min_width=60)
        delete = gr.Button(texts.delete, size="sm", elem_id="delete", min_width=60)
    with gr.Accordion(texts.settings, open=False, elem_id="settings"):
        settings = _settings(texts, thinks=thinks)
    with gr.Row():
        dark = gr.Button(texts.dark, size="sm", elem_id="dark", min_width=60)
        language = gr.Button(texts.other_language, size="sm", elem_id="language", min_width=60)
    log_out = gr.Button(texts.log_out, size="sm", elem_id="log-out", visible=has_login)
    if HUB_NAME.fullmatch(model):
        places = f"huggingface.co/{model}, modelscope.cn/models/{model}"
        gr.Markdown(f"{texts.license}: {places}", elem_id="license")
    return Side(chats, new, follow, rename, delete, settings, dark, language, log_out)


def _settings(texts: Texts, *, thinks: bool) -> list[gr.Textbox | gr.Checkbox]:
    # Fields of text: an empty one leaves the choice to the model, which a number cannot say.
    numbers = {
        "temperature": texts.temperature,
        "top-p": texts.top_p,
        "max-tokens": texts.max_tokens,
        "seed": texts.seed,
    }
    settings: list[gr.Textbox | gr.Checkbox] = [
        gr.Textbox(
            label=texts.system_prompt, placeholder=texts.system_hint, lines=3, elem_id="system"
        ),
        *(
            gr.Textbox(label=label, placeholder=texts.system_hint, elem_id=name, max_lines=1)
            for name, label in numbers.items()
        ),
    ]
    if thinks:
        settings.append(gr.Checkbox(True, label=texts.thinking, elem_id="thinking"))
    return settings


def _wire_answers(
    page: gr.Blocks, chatting: Chatting, side: Side, main: tuple[Any, Any, Any]
) -> None:
    question, chatbot, conversation = main
    busy = [question, side.chats, side.new, side.rename, side.delete]
    state = [conversation, *side.settings]
    asking = (
        (question.submit, chatting.ask, [question, *state]),
        (chatbot.retry, chatting.retry, state),
        (chatbot.edit, chatting.edit, state),
    )
    for trigger, fn, inputs in asking:
        # Beside the answer, not before it: only the first step of a chain knows what was edited.
        trigger(None, outputs=busy, js="() => qwen.busy(true)", **EVENT)
        begun = trigger(fn, inputs, list(main), **EVENT)
        for over in (begun.success, begun.failure):
            over(None, outputs=busy, js="() => qwen.busy(false)", **EVENT)
    chatbot.undo(chatting.undo, [conversation], list(main), **EVENT)
    question.stop(chatting.stop, **EVENT)
    page.unload(chatting.stop)


def _wire_browser(
    page: gr.Blocks, chatting: Chatting, side: Side, main: tuple[Any, Any, Any]
) -> None:
    _, chatbot, conversation = main
    shown = {"inputs": [conversation], "outputs": [chatbot, side.settings[0]], **EVENT}
    opened = [conversation, side.chats]
    # Settings but the system prompt, which belongs to a conversation.
    kept = list(side.settings[1:])
    page.load(None, outputs=[*opened, *kept], js=f"() => qwen.begin({len(kept)})", **EVENT).then(
        chatting.show, **shown
    )
    for trigger, inputs, js in (
        (side.chats.input, [side.chats], "(id) => qwen.open(id)"),
        (side.new.click, [], "() => qwen.fresh()"),
        (side.follow.click, [], "() => qwen.follow()"),
        (side.delete.click, [conversation], "(one) => qwen.remove(one)"),
    ):
        trigger(None, inputs, opened, js=js, **EVENT).then(chatting.show, **shown)
    side.rename.click(None, [conversation], opened, js="(one) => qwen.rename(one)", **EVENT)
    conversation.change(None, [conversation], opened, js="(one) => qwen.save(one)", **EVENT)
    for setting in kept:
        setting.change(None, kept, js="(...values) => qwen.keep(values)", **EVENT)
    side.dark.click(None, js="() => qwen.dark()", **EVENT)
    side.language.click(None, js="() => qwen.language()", **EVENT)
    side.log_out.click(None, js="() => qwen.logOut()", **EVENT)


def _app(page: gr.Blocks) -> App:
    whole = mount_gradio_app(
        FastAPI(),
        page,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=1,
        theme=gr.themes.Base(
            primary_hue="indigo", neutral_hue="slate", font=SANS, font_mono=MONO, radius_size="lg"
        ),
    )
    app = whole.routes[-1].app
    assert isinstance(app, App)
    return app
