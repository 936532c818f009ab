"""Brings model weights onto a host and proves them. Runs under the host's own python3 (3.9 or
newer, standard library only). Knows nothing of the service, of releases or of units."""
