"""The transfer of artifacts to this host: its order, its sources, its progress."""
