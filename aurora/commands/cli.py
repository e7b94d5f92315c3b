"""The `aurora` command: questions about params, models and rows that no stage answers."""

from importlib import import_module

import click

# Each command is a function of its own name in the module of that name.
COMMANDS = ("chat", "check", "compare", "doctor", "inspect", "plan", "preview", "sources", "why")


class LateGroup(click.Group):
    """A group that imports a command's module, and torch behind it, only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return getattr(import_module(f"aurora.commands.{name}"), name) if name in COMMANDS else None


@click.command(cls=LateGroup)
@click.version_option(package_name="aurora", message="%(version)s")
def main() -> None:
    """Aurora: a Chinese instruction tune of Mixtral-8x7B in 4 bits, as a DVC pipeline."""


if __name__ == "__main__":
    main()
