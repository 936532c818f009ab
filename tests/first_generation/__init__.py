"""A tiny random checkpoint of the first generation in its original format, and the published
architecture once more, written plainly, to compare with."""
