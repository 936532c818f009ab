"""The session of the README, played for real: `make demo`."""
