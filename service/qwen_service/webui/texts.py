"""Every word of the chat page, in English and in Chinese, and which of the two a browser gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]
COOKIE = "qwen-language"


@dataclass(frozen=True, slots=True)
class Texts:
    language: Language
    html_language: str
    other_language: str
    chats: str
    new_chat: str
    rename: str
    delete: str
    title_asked: str
    sure_to_delete: str
    settings: str
    system_prompt: str
    system_hint: str
    temperature: str
    top_p: str
    max_tokens: str
    seed: str
    thinking: str
    thoughts: str
    question: str
    welcome: str
    caution: str
    kept: str
    kept_until_logout: str
    copied: str
    license: str
    dark: str
    log_out: str
    sure_to_log_out: str
    log_in: str
    api_key: str
    key_unknown: str
    key_why: str
    loading: str
    no_chat: str
    unanswered: str
    stopped: str
    too_long_answer: str
    busy: str
    not_ready: str
    too_long: str
    login_again: str
    unreachable: str
    broken: str
    refused: str


ENGLISH = Texts(
    language="en",
    html_language="en",
    other_language="中文",
    chats="Conversations",
    new_chat="New chat",
    rename="Rename",
    delete="Delete",
    title_asked="Title of this conversation",
    sure_to_delete="Delete this conversation?",
    settings="Settings",
    system_prompt="System prompt",
    system_hint="The model's own",
    temperature="Temperature",
    top_p="Top P",
    max_tokens="Max tokens",
    seed="Seed",
    thinking="Think before answering",
    thoughts="Thoughts",
    question="Ask anything",
    welcome="What can I do for you?",
    caution="Answers may be wrong.",
    kept="Conversations are kept in this browser alone.",
    kept_until_logout="Conversations are kept in this browser alone, until you log out.",
    copied="Another tab went on with this conversation too. It goes on here as “{}”.",
    license="License of the model",
    dark="Dark or light",
    log_out="Log out",
    sure_to_log_out="Log out, and delete your conversations from this browser?",
    log_in="Log in",
    api_key="API key",
    key_unknown="This API key is not known here.",
    key_why="This service asks for an API key. It is not kept.",
    loading="The chat page is being loaded.",
    no_chat="This model makes embeddings; it does not chat.",
    unanswered="No answer came.",
    stopped="Stopped.",
    too_long_answer="The answer ends here because it reached the limit of tokens.",
    busy="Too many people are asking right now. Try again in a moment.",
    not_ready="The service takes no questions right now. Try again in a moment.",
    too_long="The conversation is too long for the model. Start a new one, or undo some turns.",
    login_again="Your API key is not accepted any more. Log out, then log in again.",
    unreachable="The service did not answer.",
    broken="The answer broke off.",
    refused="The service refused the question",
)

CHINESE = Texts(
    language="zh",
    html_language="zh-CN",
    other_language="English",
    chats="对话",
    new_chat="新对话",
    rename="重命名",
    delete="删除",
    title_asked="对话标题",
    sure_to_delete="删除此对话？",
    settings="设置",
    system_prompt="系统提示词",
    system_hint="模型默认",
    temperature="温度",
    top_p="Top P",
    max_tokens="最大 token 数",
    seed="随机种子",
    thinking="回答前先思考",
    thoughts="思考过程",
    question="输入问题",
    welcome="有什么可以帮您？",
    caution="回答可能有误。",
    kept="对话只保存在此浏览器中。",
    kept_until_logout="对话只保存在此浏览器中，退出登录时删除。",
    copied="另一个标签页也继续了此对话。此处的对话另存为“{}”。",
    license="模型许可协议",
    dark="深色 / 浅色",
    log_out="退出登录",
    sure_to_log_out="退出登录，并从此浏览器中删除您的对话？",
    log_in="登录",
    api_key="API 密钥",
    key_unknown="无法识别此 API 密钥。",
    key_why="此服务需要 API 密钥；密钥不会被保存。",
    loading="正在加载聊天页面。",
    no_chat="这是嵌入模型，不支持对话。",
    unanswered="没有收到回答。",
    stopped="已停止。",
    too_long_answer="已达到 token 上限，回答到此为止。",
    busy="当前提问的人太多，请稍后重试。",
    not_ready="服务暂时无法回答，请稍后重试。",
    too_long="对话超出了模型的长度上限。请新建对话，或撤销几轮。",
    login_again="您的 API 密钥已失效，请退出后重新登录。",
    unreachable="服务没有响应。",
    broken="回答中断了。",
    refused="服务拒绝了这个问题",
)

BY_LANGUAGE: dict[Language, Texts] = {"en": ENGLISH, "zh": CHINESE}


def choose(cookie: str, accepted: str) -> Texts:
    """By what was chosen on the page, else by the first of the browser's languages that is here."""
    if cookie in ("en", "zh"):
        return CHINESE if cookie == "zh" else ENGLISH
    for wish in accepted.lower().split(","):
        language = wish.split(";")[0].strip().split("-")[0]
        if language in ("en", "zh"):
            return CHINESE if language == "zh" else ENGLISH
    return ENGLISH
