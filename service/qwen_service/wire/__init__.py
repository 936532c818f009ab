"""What answers look like on the wire: one module for each group of routes.

Knows neither the engine's threads nor status codes.
"""
