"""How many tokens of prompts one step reads, so that it takes about a second on any machine."""

from __future__ import annotations

STEP_SECONDS = 1.0
LEAST_TOKENS = 16
MOST_TOKENS = 512
FIRST_TOKENS = 64
# What must come out the same again is read in parts of the same size again.
EQUAL_TOKENS = {"cpu": 64, "cuda": 512}


class Pace:
    def __init__(self) -> None:
        self.tokens = FIRST_TOKENS

    def record(self, tokens: int, seconds: float) -> None:
        """Goes down at once and up by half of what seems possible: a short part tells little."""
        possible = int(tokens * STEP_SECONDS / max(seconds, 1e-6))
        possible = min(possible, 2 * self.tokens)
        # Few sizes, so that kernels which plan for a size meet it again.
        size = 1 << max(possible, 1).bit_length() - 1
        self.tokens = min(max(size, LEAST_TOKENS), MOST_TOKENS)
