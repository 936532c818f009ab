"""A conversation as gradio's chatbot shows it, and which turn stands behind each shown message."""

from __future__ import annotations

from typing import Any

from qwen_service.webui.conversation import Conversation, Turn
from qwen_service.webui.markup import shown
from qwen_service.webui.texts import Texts


def messages(
    conversation: Conversation, texts: Texts, *, is_pending: bool = False
) -> list[dict[str, Any]]:
    turns = conversation.turns if is_pending else conversation.complete(texts.unanswered).turns
    last = len(turns) - 1
    waiting = [_message("assistant", "…")] if turns and turns[-1].role == "user" else []
    said = [
        message
        for place, turn in enumerate(turns)
        for message in _messages(turn, texts, is_pending=is_pending and place == last)
    ]
    return [*said, *waiting]


def turn_of(conversation: Conversation, shown_index: int, texts: Texts) -> int:
    """Thoughts are messages of their own to the chatbot."""
    seen = 0
    for place, turn in enumerate(conversation.turns):
        seen += len(_messages(turn, texts, is_pending=False))
        if shown_index < seen:
            return place
    raise ValueError(f"no turn is shown in place {shown_index}")


def _messages(turn: Turn, texts: Texts, *, is_pending: bool) -> list[dict[str, Any]]:
    if turn.role == "user":
        return [_message("user", shown(turn.content))]
    said = shown(turn.content)
    if turn.note:
        note = f"*{shown(turn.note)}*"
        said = f"{said}\n\n{note}" if said else note
    thoughts = []
    if turn.reasoning:
        is_thinking = is_pending and not turn.content
        status = "pending" if is_thinking else "done"
        metadata = {"title": texts.thoughts, "status": status}
        thoughts = [{**_message("assistant", shown(turn.reasoning)), "metadata": metadata}]
        if is_thinking:
            return thoughts
    return [*thoughts, _message("assistant", said)]


def _message(role: str, text: str) -> dict[str, Any]:
    # In this shape gradio takes the text as it is; it would reindent a plain one.
    return {"role": role, "content": [{"type": "text", "text": text}]}
