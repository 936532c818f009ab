"""openai 0.28.1 in an environment of its own, with the snippet of Qwen's tutorial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pip_settings
from tests.fixture_model.dialogues import answer_to
from tests.running_service import RunningService

pytestmark = pytest.mark.contract

UV = Path(sys.executable).with_name("uv")

# As Qwen's README has it, but for the address and that the pieces are kept to be compared.
SNIPPET = """
import json, sys
import openai
openai.api_base = sys.argv[1]
openai.api_key = "none"

pieces = []
for chunk in openai.ChatCompletion.create(
    model="gpt-3.5-turbo",
    messages=[
        {"role": "user", "content": "你好"}
    ],
    stream=True
):
    if hasattr(chunk.choices[0].delta, "content"):
        pieces.append(chunk.choices[0].delta.content)

response = openai.ChatCompletion.create(
    model="gpt-3.5-turbo",
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


def test_the_tutorial_runs_unchanged(legacy_python: Path, open_service: RunningService) -> None:
    result = subprocess.run(
        [legacy_python, "-c", SNIPPET, f"{open_service.url}/v1"],
        check=True,
        capture_output=True,
        text=True,
    )
    seen = json.loads(result.stdout)
    assert seen.pop("usage") > 0
    assert seen == {
        "version": "0.28.1",
        "streamed": answer_to("你好"),
        "answer": answer_to("你好"),
        "models": ["Qwen/tiny", "gpt-3.5-turbo"],
        "refused": [404, "model", "model_not_found"],
    }
