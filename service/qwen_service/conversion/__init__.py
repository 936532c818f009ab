"""Requests of the API -> values that the engine understands."""
