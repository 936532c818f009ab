"""What the demo is made of, without a host: transcripts, a terminal's screen, the edited file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_deploy import config, reference
from tests.demo.screen import remaining, run
from tests.demo.session import Unexpected, settled
from tests.demo.transcript import differences, session_of, with_session


def test_transcripts_differ_in_more_than_numbers_or_not() -> None:
    before = "$ up --host 10.0.0.1\n10.0.0.1  a  done  1.2s\n10.0.0.1  b\nkey: sk-abc\n"
    after = "$ up --host 10.9.9.9\n\n10.9.9.9  b\n10.9.9.9    a  done  30.0s\nkey: sk-x_1-y\n"
    assert differences(before, after) == ()
    assert differences(before, after.replace("done", "failed")) == (
        "$ up --host 10.0.0.1: no longer: # a done #",
        "$ up --host 10.0.0.1: is new: # a failed #",
    )
    assert differences(before, "") == ("$ up --host 10.0.0.1 became nothing",)


def test_a_readme_gets_a_new_session() -> None:
    readme = "# Title\n```sh\nls\n```\n```console\n$ old\n```\nend\n"
    assert session_of(with_session(readme, "$ new \\1\n")) == "$ new \\1\n"


def test_a_live_line_does_not_stay() -> None:
    live = "\x1b[?25l| building\r\x1b[2K/ building\n\r\x1b[1A\x1b[2K\x1b[?25h"
    assert remaining(f"one\r\n{live}你好\r\n{live}") == "one\n你好\n"


def test_what_a_program_prints_is_shown_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; print('你好', flush=True); sys.exit('why')"
    code, text = run([sys.executable, "-c", program], folder=tmp_path, environment={})
    assert (code, text) == (1, "你好\nwhy\n")
    assert capsys.readouterr().out == text


def test_the_file_of_init_is_edited_where_its_keys_stand() -> None:
    wheels = ["/srv/wheels"]
    chosen: dict[str, dict[str, Any]] = {"service": {"port": 9000}, "pip": {"find_links": wheels}}
    text = settled(reference.text(), chosen)
    assert len(text.splitlines()) == len(reference.text().splitlines())
    deployment = config.parse(yaml.safe_load(text), origin="qwen-deploy.yml")
    assert (deployment.service.port, deployment.pip.find_links) == (9000, ("/srv/wheels",))
    with pytest.raises(Unexpected, match="no_such_key"):
        settled(reference.text(), {"service": {"no_such_key": 1}})
