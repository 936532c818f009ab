"""Programs for the host's own python3 (3.8 or newer, standard library only), sent as text.

They read facts, hold the lock, wait for a completion and write the audit line; none changes
what a playbook manages.
"""
