"""The command line: the only package that prints, and the only one that imports typer and rich."""
