"""The published OpenAPI document, corrected where it would not be true by itself.

Knows no route by name.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from qwen_service.protocol.answers import Error
from qwen_service.settings import Settings

# FastAPI tells of its own errors; here they are answered with 400 and OpenAI's envelope.
UNUSED = ("HTTPValidationError", "ValidationError")

ERRORS = {
    "400": "Something in the request is wrong; `param` names it",
    "401": "No API key, or one that is not known here",
    "404": "There is no such model",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "429": "The service is busy; come back after `Retry-After` seconds",
    "500": "The service failed",
    "503": "The service is not ready; come back after `Retry-After` seconds",
}
# What a request without a body cannot do wrong.
OF_BODIES = ("400", "408", "413")
# Whatever state the service is in, these answer everyone.
OPEN = ("/health", "/ready", "/version")


def install(app: FastAPI, settings: Settings) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = corrected(generate(), settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def corrected(document: dict[str, Any], settings: Settings) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in UNUSED:
        schemas.pop(name, None)
    for schema in schemas.values():
        _limit(schema, settings)
    error = Error.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= {**error.pop("$defs"), "Error": error}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if path not in OPEN:
                _guard(operation, settings)
    if settings.keys_file is not None:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _guard(operation: dict[str, Any], settings: Settings) -> None:
    """What may happen to every request that needs the model."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status, description in ERRORS.items():
        if "requestBody" in operation or status not in OF_BODIES:
            operation["responses"][status] = {"description": description, "content": content}
    for parameter in operation.get("parameters", ()):
        if parameter["name"] == "model":
            parameter["schema"]["enum"] = list(settings.model_names)
    if settings.keys_file is not None:
        operation["security"] = [{"key": []}]


def _limit(schema: dict[str, Any], settings: Settings) -> None:
    """What depends on the settings."""
    if not schema.get("additionalProperties"):
        return
    fields = schema.get("properties", {})
    if "model" in fields:
        names = {"type": "string", "enum": list(settings.model_names)}
        if "model" in schema.get("required", ()):
            fields["model"] = names
        else:
            fields["model"] = {"anyOf": [names, {"type": "null"}]}
    for kind in fields.get("n", {}).get("anyOf", ()):
        if kind.get("type") == "integer":
            kind["maximum"] = settings.max_choices
    for kind in fields.get("stop", {}).get("anyOf", ()):
        if kind.get("type") == "array":
            kind["maxItems"] = settings.max_stops
