"""The one sentence in which a transfer ends that no source can continue: who failed and why, how
far it got, and that the next one continues. Does not know when that is so."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_weights.errors import (
    Changed,
    ChecksumMismatch,
    Missing,
    SourceGone,
    TokenRefused,
    Untrusted,
    WeightsError,
)
from qwen_weights.manifest import Artifact
from qwen_weights.pull.seat import Seat

# What the operator can mend most easily gives the error its kind.
_KINDS = (TokenRefused, Untrusted, ChecksumMismatch, Changed, Missing)


def refused(artifact: Artifact, seats: Sequence[Seat], reached: str) -> WeightsError:
    """Every source has refused the artifact, or is refused."""
    errors = [error for error in (seat.refusal_of(artifact) for seat in seats) if error]
    if not errors:
        return Missing(f"no source is meant to have {artifact.path}; {reached}")
    reasons = "; ".join(dict.fromkeys(str(error) for error in errors))
    subject = "" if len(errors) == 1 else f"no source is left for {artifact.path}: "
    kind = next((kind for kind in _KINDS if any(isinstance(e, kind) for e in errors)), None)
    return (kind or type(errors[0]))(f"{subject}{reasons}; {reached}")


def gone(artifact: Artifact, seats: Sequence[Seat], seconds: float, reached: str) -> SourceGone:
    """Nothing came from anywhere for too long; not every source is refused."""
    if not seats:
        return SourceGone(f"no source was named for {seconds:.0f} s; {reached}")
    if len(seats) == 1:
        (seat,) = seats
        reason = seat.refusal_of(artifact) or seat.complaint(artifact) or "nothing came"
        return SourceGone(f"{seat.name} is gone: {reason} for {seconds:.0f} s; {reached}")
    reasons = "; ".join(_reason(seat, artifact) for seat in seats)
    return SourceGone(
        f"no source of {artifact.path} is left after {seconds:.0f} s: {reasons}; {reached}"
    )


def _reason(seat: Seat, artifact: Artifact) -> str:
    error = seat.refusal_of(artifact)
    if error:
        return str(error)
    return f"{seat.name} is gone: {seat.complaint(artifact) or 'nothing came'}"
