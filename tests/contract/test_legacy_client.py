"""openai 0.28.1 in an environment of its own, with the snippet of Qwen's tutorial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qwen_service.engine import Chat, Generation

from tests import pip_settings
from tests.fake_engine import FACTS, FakeEngine
from tests.fake_service import FakeService
from tests.fixture_model.dialogues import answer_to
from tests.running_service import RunningService

pytestmark = pytest.mark.contract

UV = Path(sys.executable).with_name("uv")

# As Qwen's README has it, but for the address and that what comes is kept to be compared.
SNIPPET = """
import json, sys
import openai
openai.api_base = sys.argv[1]
openai.api_key = "none"

pieces = []
# create a request activating streaming response
for chunk in openai.ChatCompletion.create(
    model="Qwen",
    messages=[
        {"role": "user", "content": "你好"}
    ],
    stream=True
    # Specifying stop words in streaming output format is not yet supported.
):
    if hasattr(chunk.choices[0].delta, "content"):
        pieces.append(chunk.choices[0].delta.content)

# create a request not activating streaming response
response = openai.ChatCompletion.create(
    model="Qwen",
    messages=[
        {"role": "user", "content": "你好"}
    ],
    stream=False,
    stop=[] # You can add custom stop words here, e.g., stop=["Observation:"] for ReAct prompting.
)

try:
    openai.ChatCompletion.create(model="gpt-9", messages=[{"role": "user", "content": "Hi"}])
except openai.error.InvalidRequestError as error:
    refused = [error.http_status, error.param, error.code]

print(json.dumps({
    "version": openai.__version__,
    "streamed": "".join(pieces),
    "answer": response.choices[0].message.content,
    "usage": response.usage.total_tokens,
    "models": [model.id for model in openai.Model.list().data],
    "refused": refused,
}))
"""

# As Qwen's examples have it for functions; in streams, which the original could not, as well.
FUNCTIONS = """
import json, sys
import openai
openai.api_base = sys.argv[1]
openai.api_key = "none"

functions = [
    {
        "name_for_human": "天气查询",
        "name_for_model": "get_weather",
        "description_for_model": "Weather of a city. Format the arguments as a JSON object.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
messages = [{"role": "user", "content": "weather"}]
choice = openai.ChatCompletion.create(
    model="Qwen/tiny", messages=messages, functions=functions
).choices[0]

streamed, reasons = {"name": "", "arguments": ""}, []
for chunk in openai.ChatCompletion.create(
    model="Qwen/tiny", messages=messages, functions=functions, stream=True
):
    delta = chunk.choices[0].delta
    for name, text in delta.get("function_call", {}).items():
        streamed[name] += text
    reasons.append(chunk.choices[0].finish_reason)

messages.append(choice.message)
messages.append({"role": "function", "name": "get_weather", "content": "21 degrees"})
answer = openai.ChatCompletion.create(model="Qwen/tiny", messages=messages, functions=functions)

engine = openai.Completion.create(engine="Qwen/tiny", prompt="one two")

print(json.dumps({
    "called": [choice.finish_reason, choice.message.content, choice.message.function_call],
    "streamed": [reasons[-1], streamed],
    "answered": answer.choices[0].message.content,
    "engine": engine.choices[0].text,
}))
"""


@pytest.fixture(scope="session")
def legacy_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openai-0.28.1") / "venv"
    settings = pip_settings.load()
    environment = {**os.environ, **settings.uv_environment()}
    python = folder / "bin" / "python"
    install = ("pip", "install", "--quiet", "--python", str(python), *settings.uv_arguments())
    for arguments in (("venv", "--quiet", "--python", sys.executable, str(folder)), install):
        packages = ("openai==0.28.1",) if arguments is install else ()
        subprocess.run([UV, *arguments, *packages], check=True, env=environment)
    return python


def run(python: Path, program: str, url: str) -> Any:
    argv = [str(python), "-c", program, f"{url}/v1"]
    result = subprocess.run(argv, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_tutorial_runs_unchanged(legacy_python: Path, open_service: RunningService) -> None:
    seen = run(legacy_python, SNIPPET, open_service.url)
    assert seen.pop("usage") > 0
    assert seen == {
        "version": "0.28.1",
        "streamed": answer_to("你好"),
        "answer": answer_to("你好"),
        "models": ["Qwen/tiny", "gpt-3.5-turbo", "Qwen"],
        "refused": [404, "model", "model_not_found"],
    }


class ReactEngine(FakeEngine):
    """Calls the function when it is offered, and ends when it has the result."""

    def _pieces(self, generation: Generation) -> Sequence[str]:
        if not isinstance(generation.prompt, Chat):
            return super()._pieces(generation)
        if generation.prompt.continues:
            return (" I know.", "\nFinal", " Answer: ", "sunny")
        return tuple("Thought: I look.\nAction: get_weather\nAction Input: {}\nObservation: ?")


def test_the_first_generation_calls_functions_in_answers_and_in_streams(
    legacy_python: Path,
) -> None:
    facts = replace(FACTS, tools="react")
    with FakeService(ReactEngine(facts=facts)) as service:
        seen = run(legacy_python, FUNCTIONS, service.url)
    call = {"name": "get_weather", "arguments": "{}"}
    assert seen == {
        "called": ["function_call", "I look.", call],
        "streamed": ["function_call", call],
        "answered": "sunny",
        "engine": "one two",
    }
