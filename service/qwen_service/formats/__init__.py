"""How models write what they mean: thoughts and tool calls as text, read piece by piece.

Knows neither HTTP nor the engine.
"""
