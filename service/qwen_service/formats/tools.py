"""A function that the model may call, whichever way the caller described it.

Knows neither prompts nor answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    # A JSON schema.
    parameters: Mapping[str, Any]
    # Whether the arguments have to fit the schema in any case.
    strict: bool = False
    # The original demo's callers may give a tool a second name.
    human_name: str = ""

    def for_template(self) -> dict[str, Any]:
        """As the templates of Qwen2.5 and later print it into the prompt."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}
