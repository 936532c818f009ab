"""What requests may say and what answers look like: one module for each group of routes.

Knows nothing of the engine. Fields that nobody knows are accepted, and named in the answer's head.
"""
