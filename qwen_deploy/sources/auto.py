"""Both hubs at once: what they agree on may come from either, and one does where the other fails.
Which is quicker, the hosts find out. Knows no protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from qwen_weights.checkpoint import some

from qwen_deploy.sources import huggingface, listing, modelscope, pinning
from qwen_deploy.sources.listing import Listing
from qwen_deploy.sources.pinned import Pinned
from qwen_deploy.sources.refusals import HubError, HubMissing, HubRefused, HubUnreachable
from qwen_deploy.sources.settings import Settings
from qwen_deploy.sources.wire import Wire

Ask = Callable[[Settings, Wire], Listing]
# The gravest last: whatever may be reached another way is worth that.
_GRAVITY = (HubMissing, HubRefused, HubUnreachable)


def pin(settings: Settings, wire: Wire) -> Pinned:
    if settings.revision in (modelscope.BRANCH, huggingface.BRANCH):
        settings = replace(settings, revision=None)  # each hub has its own name for it
    return of_any(ask_all((modelscope.ask, huggingface.ask), settings, wire), settings)


def ask_all(asks: Sequence[Ask], settings: Settings, wire: Wire) -> list[Listing | HubError]:
    def ask(one: Ask) -> Listing | HubError:
        try:
            return one(settings, wire)
        except HubError as error:
            return error

    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(ask, asks))


def of_any(answers: Sequence[Listing | HubError], settings: Settings) -> Pinned:
    """The first that gives a manifest names the artifacts; the others bring what is the same."""
    errors = [answer for answer in answers if isinstance(answer, HubError)]
    listings = [answer for answer in answers if isinstance(answer, Listing)]
    for first in listings:
        try:
            pinned = pinning.pin(first, settings)
        except HubError as error:
            errors.append(error)
            continue
        others = [one for one in listings if one is not first]
        notes = [f"one source less: {error.message}" for error in errors]
        return _joined(pinned, first, others, notes)
    raise _all_failed(errors)


def _joined(
    pinned: Pinned, first: Listing, others: Sequence[Listing], notes: Sequence[str]
) -> Pinned:
    upstreams, said = list(pinned.upstreams), list(notes)
    for other in others:
        missing = set(listing.differing(first, other))
        common = [row.path for row in first.files if row.path not in missing]
        if missing:
            what = some(sorted(missing))
            said.append(f"{other.place} has no or another {what}; that of {first.place} is taken")
        if common:
            upstreams += [one.only(common) if missing else one for one in other.upstreams]
    return replace(pinned, upstreams=tuple(upstreams), notes=(*pinned.notes, *said))


def _all_failed(errors: Sequence[HubError]) -> HubError:
    grave = max(errors, key=lambda one: _GRAVITY.index(type(one)) if type(one) in _GRAVITY else 0)
    hints = [one.hint for one in errors if one.hint]
    return type(grave)(
        "; ".join(one.message for one in errors),
        hint="; ".join(dict.fromkeys(hints)) or None,
    )
