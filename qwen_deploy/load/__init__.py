"""Load for a service, and what it makes of it. Knows no host, no SSH and no terminal.

run.measure is the way in; a target is any server that speaks OpenAI's chat completions.
"""
