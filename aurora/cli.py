"""The `aurora` command: questions about params, models and rows that no stage answers."""

from importlib import import_module

import click

COMMANDS = {
    "chat": ("aurora.eval.chatting", "chat"),
    "check": ("aurora.checking", "check"),
    "compare": ("aurora.eval.comparison", "compare"),
    "doctor": ("aurora.sft.doctor", "doctor"),
    "inspect": ("aurora.model.inspection", "inspect"),
    "plan": ("aurora.sft.planning", "plan_command"),
    "preview": ("aurora.format.preview", "preview"),
    "sources": ("aurora.source_table", "sources"),
    "why": ("aurora.reasons", "why"),
}


class LateGroup(click.Group):
    """A group that imports a command's module, and torch behind it, only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name]
        return getattr(import_module(module), attribute)


@click.command(cls=LateGroup)
@click.version_option(package_name="aurora", message="%(version)s")
def main() -> None:
    """Aurora: a Chinese instruction tune of Mixtral-8x7B in 4 bits, as a DVC pipeline."""


if __name__ == "__main__":
    main()
