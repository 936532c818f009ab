"""Requests between the event loop and a model: queue, batch, the thread that computes."""
