"""The life of the process: systemd, states from starting to draining, proof that it works."""
