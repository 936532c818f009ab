"""What a service tells in plain GETs before anyone talks: its models, and whether people can chat
in a browser. Beside client.py the only user of httpx in the chat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwen_deploy.errors import NeedsAttention, QwenDeployError, UsageError

if TYPE_CHECKING:
    import httpx

    from qwen_deploy.inventory import Host

SECONDS = 30.0
LONGEST_REASON = 200


def first_model(base_url: str, api_key: str) -> str:
    url = f"{base_url}/models"
    response = _get(url, {"Authorization": f"Bearer {api_key}"})
    if response.status_code in (401, 403):
        raise UsageError(f"`{url}` refused the API key", hint="give another: --api-key-file FILE")
    if response.status_code != 200:
        raise QwenDeployError(f"`{url}` answered {response.status_code}: {_reason(response)}")
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise UsageError(f"`{url}` names no model", hint="name one: --model NAME") from None


def check_web_ui(address: str, host: Host) -> None:
    ready = _get(f"{address}ready", {})
    if ready.status_code != 200:
        raise NeedsAttention(
            f"the service of `{host}` is not ready: {_reason(ready)}",
            host=host.name,
            hint=f"qwen-deploy logs --host {host.text} -f",
        )
    page = _get(address, {"Accept": "text/html"})
    if not (page.is_success and "text/html" in page.headers.get("Content-Type", "")):
        raise QwenDeployError(
            f"the service of `{host}` has no web UI",
            host=host.name,
            hint="set `service.web_ui: true` in qwen-deploy.yml, then run "
            f"qwen-deploy up --host {host.text}",
        )


def _reason(response: httpx.Response) -> str:
    try:
        told: Any = response.json()
        error = told.get("error") or {}
        return str(told.get("reason") or error.get("message") or told.get("status"))
    except (ValueError, AttributeError):
        return " ".join(response.text.split())[:LONGEST_REASON] or response.reason_phrase


def _get(url: str, headers: dict[str, str]) -> httpx.Response:
    import httpx

    try:
        # A tunnel's end, or an address that the person gave: no proxy stands between.
        with httpx.Client(timeout=SECONDS, trust_env=False, follow_redirects=True) as client:
            return client.get(url, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise QwenDeployError(f"`{url}` does not answer: {error}") from error
