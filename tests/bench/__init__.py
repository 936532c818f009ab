"""Figures, not tests: each measures in one run what it is compared with."""
