from __future__ import annotations

import itertools

import pytest

from qwen_deploy import errors
from qwen_deploy.errors import GRAVITY, QwenDeployError, gravest
from qwen_deploy.events import HostFinished

# As the exit codes are documented.
CODES = {
    errors.UsageError: 2,
    errors.Refused: 3,
    errors.LockHeld: 3,
    errors.Unreachable: 4,
    errors.AuthRefused: 4,
    errors.HostKeyUnknown: 4,
    errors.HostKeyChanged: 4,
    errors.RolloutFailed: 1,
    errors.NeedsAttention: 5,
    errors.Interrupted: 130,
}
TREE = set(CODES)


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_every_kind_has_its_exit_code(kind: type[QwenDeployError], code: int) -> None:
    assert kind.exit_code == code
    assert code in GRAVITY


def test_the_documented_tree_is_the_tree() -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type)]
    ours = {one for one in kinds if issubclass(one, QwenDeployError)} - {QwenDeployError}
    assert ours == TREE
    for kind in ours:
        assert f"── {kind.__name__}" in (errors.__doc__ or "")


def test_the_gravest_wins_in_any_order() -> None:
    documented = (5, 130, 1, 4, 3, 0)
    for codes in itertools.permutations(documented, 3):
        assert gravest(codes) == next(one for one in documented if one in codes)


def test_without_a_host_nothing_is_grave() -> None:
    assert gravest(()) == 0


def test_an_error_reads_as_its_message() -> None:
    error = errors.Refused("port 8000 is taken", host="gpu-1", hint="stop it")
    assert str(error) == error.message == "port 8000 is taken"
    assert (error.host, error.hint, error.state, error.evidence) == ("gpu-1", "stop it", None, ())
    assert (error.finished, error.serves) == (None, None)


@pytest.mark.parametrize("release", ["r-1", None])
def test_what_is_served_is_what_the_change_left(release: str | None) -> None:
    finished = HostFinished("gpu-1", "rolled back", release, "r-1", 0, 2.5)
    assert errors.RolloutFailed("it broke", finished=finished).serves == release
