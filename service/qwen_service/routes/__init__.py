"""The routes: a request of one group is read, answered and put on the wire."""
