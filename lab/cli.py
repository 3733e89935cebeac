"""The commands of setup-env.py."""

import click


@click.group()
def main() -> None:
    """Lab."""
