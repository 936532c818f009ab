"""The error envelope of OpenAI's API and the one exception that becomes it.

Knows neither the engine nor the routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    @property
    def type(self) -> str:
        return TYPES.get(self.status) or (
            "server_error" if self.status >= 500 else "invalid_request_error"
        )

    def envelope(self) -> dict[str, Any]:
        return {
            "error": {
                # What the caller sent may hold halves of characters, which cannot be sent back.
                "message": self.message.encode("utf-8", "backslashreplace").decode(),
                "type": self.type,
                "param": self.param and self.param.encode("utf-8", "backslashreplace").decode(),
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after_seconds is not None:
            headers["retry-after"] = str(self.retry_after_seconds)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers
