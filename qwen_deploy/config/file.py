"""From the file, and from what the command line adds, to a checked Deployment. Knows no keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qwen_deploy.complaints import complaint
from qwen_deploy.config.deployment import Deployment
from qwen_deploy.config.repeated import repeated
from qwen_deploy.errors import UsageError

DEFAULT_PATH = Path("qwen-deploy.yml")


def load(path: Path) -> Deployment:
    """Disk to value. Raises UsageError that names the path to each wrong key."""
    try:
        content = _content(path.read_text("utf-8"), origin=str(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", hint="qwen-deploy init") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not YAML: {_problem(error)}") from error
    return parse(content if content is not None else {}, origin=str(path))


def _content(text: str, *, origin: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if wrong := [f"{origin}: {sentence}" for sentence in repeated(node)]:
            raise UsageError("\n       ".join(wrong))
        return loader.construct_document(node) if node else None
    except RecursionError as error:
        raise UsageError(f"{origin}: is nested too deeply") from error
    finally:
        loader.dispose()


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def parse(content: Any, *, origin: str) -> Deployment:
    if not isinstance(content, Mapping):
        raise UsageError(f"{origin}: should be a mapping of keys", hint="qwen-deploy docs")
    try:
        return Deployment.model_validate(_tuples(content))
    except RecursionError as error:
        raise UsageError(f"{origin}: an alias holds itself") from error
    except ValidationError as error:
        lines = [f"{origin}: {complaint(item, Deployment)}" for item in error.errors()]
        raise UsageError("\n       ".join(lines), hint="qwen-deploy docs") from error


def override(deployment: Deployment, own: Mapping[str, Mapping[str, Any]]) -> Deployment:
    """With the values that the command line gave; None means not given."""
    content = deployment.model_dump()
    for section, values in own.items():
        content[section] |= {key: value for key, value in values.items() if value is not None}
    return parse(content, origin="command line")


def _tuples(value: Any) -> Any:
    """YAML has lists where the models have tuples; a key without a value stands at its default."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items() if item is not None}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
