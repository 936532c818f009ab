"""Fields of a request -> values that the engine understands, alike for chats and completions.

Knows neither messages nor answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwen_service.engine import Constraint, Generation, Prompt, Sampling
from qwen_service.protocol.base import SEEDS, wrong
from qwen_service.protocol.sampling import SamplingFields
from qwen_service.settings import Settings


def choices(fields: SamplingFields, settings: Settings) -> int:
    count = fields.n or 1
    if count > settings.max_choices:
        raise wrong("n", f"should be at most {settings.max_choices}")
    return count


def sampling(
    fields: SamplingFields,
    settings: Settings,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    constraint: Constraint | None = None,
    stops: tuple[str, ...] = (),
) -> Sampling:
    """`stops` are those that the chat format needs."""
    given: tuple[str, ...] = (
        (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    )
    if len(given) > settings.max_stops:
        raise wrong("stop", f"should be at most {settings.max_stops} strings")
    return Sampling(
        max_tokens=max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        seed=fields.seed,
        stop=tuple(dict.fromkeys(given + stops)),
        logit_bias=tuple((int(key), it) for key, it in (fields.logit_bias or {}).items()),
        logprobs=logprobs,
        constraint=constraint,
    )


def generations(
    id: str, prompts: Sequence[Prompt], sampling: Sampling, choices: int
) -> tuple[Generation, ...]:
    """One for each choice of each prompt; each draws its own random numbers, also with a seed."""
    return tuple(
        Generation(f"{id}-{at * choices + choice}", prompt, _for_choice(sampling, choice))
        for at, prompt in enumerate(prompts)
        for choice in range(choices)
    )


def _for_choice(sampling: Sampling, index: int) -> Sampling:
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + index + SEEDS) % (2 * SEEDS) - SEEDS)
