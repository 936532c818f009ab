"""The schema as the annotated qwen-deploy.yml that `docs` shows and `init` starts from. Validates
nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from qwen_deploy.config import Deployment


def text(chosen: Mapping[str, Any] | None = None) -> str:
    """The whole file, annotated, every key at its default; `chosen` values stand uncommented."""
    lines = [
        "# qwen-deploy.yml: what to deploy and where. Every key is optional; a commented key",
        "# stands at its default, or at an example where it has none.",
    ]
    return "\n".join([*lines, *_section(Deployment, chosen or {}, indent="")]) + "\n"


def _section(model: type[BaseModel], chosen: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if not indent:
            yield ""
        yield from textwrap.wrap(
            field.description or "",
            96,
            initial_indent=indent + "# ",
            subsequent_indent=indent + "# ",
        )
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield f"{name}:"
            yield from _section(field.annotation, chosen.get(name, {}), "  ")
        elif name in chosen:
            yield f"{indent}{_key(name, chosen[name])}"
        elif field.default is None or (field.default == () and field.examples):
            yield f"{indent}# {_key(name, (field.examples or [None])[0])}"
        else:
            yield f"{indent}# {_key(name, field.default)}"


def _key(name: str, value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    flow = str(yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1000))
    return f"{name}: {flow.removesuffix('...' + chr(10)).strip()}"
