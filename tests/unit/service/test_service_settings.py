"""The service's environment as a value."""

from __future__ import annotations

from pathlib import Path

import pytest
from qwen_service.settings import SettingsError, load

LEAST = {"QWEN_MODEL_DIR": "/models/tiny", "QWEN_AUTH": "none"}


def test_the_least_environment_has_sensible_defaults() -> None:
    settings = load(LEAST)
    assert settings.model_names == ("tiny",)
    assert settings.listen == ("127.0.0.1", 8000)
    assert (settings.max_batch, settings.max_queue, settings.drain_seconds) == (32, 128, 30)
    assert (settings.device, settings.dtype, settings.keys_file) == ("auto", "auto", None)


def test_every_variable_is_read() -> None:
    settings = load(
        {
            "QWEN_RELEASE": "r-3f9c2a1b",
            "QWEN_MODEL_DIR": "/opt/model",
            "QWEN_MODEL_NAME": "Qwen/Qwen2.5-7B-Instruct",
            "QWEN_MODEL_REVISION": "abc",
            "QWEN_MODEL_ALIASES": "gpt-3.5-turbo, qwen,",
            "QWEN_ENGINE": "transformers",
            "QWEN_DEVICE": "cuda:1",
            "QWEN_DTYPE": "bfloat16",
            "QWEN_AUTH": "keys",
            "QWEN_KEYS_FILE": "/etc/keys",
            "QWEN_MAX_BATCH": "4",
            "QWEN_MAX_QUEUE": "0",
            "QWEN_MAX_CONTEXT": "2048",
            "QWEN_MAX_TOKENS_DEFAULT": "512",
            "QWEN_DRAIN_SECONDS": "5",
            "QWEN_THREADS": "2",
            "QWEN_LISTEN": "[::1]:80",
            "QWEN_WEB_UI": "off",
            "QWEN_METRICS": "key",
            "QWEN_LOG_PROMPTS": "on",
            "QWEN_BASIC_AUTH": "on",
            "QWEN_CORS_ORIGINS": "https://a.example,*",
            "QWEN_HEAD_SECONDS": "1",
            "QWEN_BODY_SECONDS": "2",
            "QWEN_MAX_CONNECTIONS": "3",
        }
    )
    assert settings.model_names == ("Qwen/Qwen2.5-7B-Instruct", "gpt-3.5-turbo", "qwen")
    assert settings.keys_file == Path("/etc/keys")
    assert settings.listen == ("::1", 80)
    assert not settings.web_ui
    assert (settings.metrics, settings.log_prompts, settings.basic_auth) == ("key", True, True)
    assert settings.cors_origins == ("https://a.example", "*")
    assert (settings.head_seconds, settings.body_seconds, settings.max_connections) == (1, 2, 3)
    assert (settings.max_context, settings.max_tokens_default, settings.threads) == (2048, 512, 2)


def test_an_empty_variable_counts_as_not_set() -> None:
    empty = ("QWEN_MAX_CONTEXT", "QWEN_THREADS", "QWEN_MODEL_ALIASES", "QWEN_LISTEN")
    assert load({**LEAST, **dict.fromkeys(empty, "")}) == load(LEAST)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("QWEN_MODEL_DIR", "", "QWEN_MODEL_DIR is not set"),
        ("QWEN_AUTH", "maybe", "QWEN_AUTH should be one of keys, none, not 'maybe'"),
        ("QWEN_AUTH", "", "QWEN_KEYS_FILE is not set"),
        ("QWEN_ENGINE", "x", "QWEN_ENGINE should be one of transformers, not 'x'"),
        ("QWEN_DEVICE", "cuda:x", "QWEN_DEVICE should be auto, cpu, cuda or cuda:N, not 'cuda:x'"),
        ("QWEN_DTYPE", "int4", "QWEN_DTYPE should be one of"),
        ("QWEN_MAX_BATCH", "0", "QWEN_MAX_BATCH should be a whole number from 1 up, not '0'"),
        ("QWEN_MAX_QUEUE", "-1", "QWEN_MAX_QUEUE should be a whole number from 0 up"),
        ("QWEN_KV_MEMORY", "1.5", "QWEN_KV_MEMORY should be a share as 0.5 or bytes as 8GiB"),
        ("QWEN_KV_MEMORY", "8 GiB", "QWEN_KV_MEMORY should be a share as 0.5 or bytes as 8GiB"),
        ("QWEN_METRICS", "on", "QWEN_METRICS should be one of open, key, off, not 'on'"),
        ("QWEN_LOG_PROMPTS", "yes", "QWEN_LOG_PROMPTS should be one of on, off, not 'yes'"),
        ("QWEN_LISTEN", "8000", "QWEN_LISTEN should be ADDRESS:PORT, not '8000'"),
        ("QWEN_LISTEN", "a:99999", "QWEN_LISTEN should be ADDRESS:PORT"),
    ],
)
def test_a_wrong_value_names_its_variable(name: str, value: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({**LEAST, name: value})
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("", None), ("0.5", 0.5), (".25", 0.25), ("4096", 4096), ("8GiB", 2**33), ("8GB", 8 * 10**9)],
)
def test_memory_is_a_share_or_a_number_of_bytes(value: str, wanted: float | int | None) -> None:
    got = load({**LEAST, "QWEN_KV_MEMORY": value}).kv_memory
    assert (got, type(got)) == (wanted, type(wanted))
