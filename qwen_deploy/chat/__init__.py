"""A conversation in the terminal with a service. Knows no host, no SSH and no release.

repl.run and repl.once are the ways in; importing them loads neither httpx nor prompt_toolkit.
"""
