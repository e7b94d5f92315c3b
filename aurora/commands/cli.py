"""The `aurora` command: questions about params, models and rows that no stage answers."""

from difflib import get_close_matches
from importlib import import_module

import click

from aurora.core.progress import calm_bars

# Each command is a function of its own name in the module of that name, with the line that the help shows.
COMMANDS = {
    "chat": "Talk with a model.",
    "check": "Check params.yaml, dvc.yaml and versions against the code.",
    "compare": "Compare two evaluations question by question.",
    "doctor": "Check this installation and machine.",
    "export": "Write a model as a folder to publish.",
    "inspect": "Count parameters and bytes of a model folder.",
    "lm_eval": "Run lm-eval's command line with the model hf-prefix.",
    "merge": "Go on where git merge stopped at dvc.lock.",
    "plan": "Predict steps, memory, disk and hours of a training.",
    "preview": "Show rows as they are trained.",
    "serve": "Serve models under OpenAI's API, with a page to chat.",
    "sources": "List every source with pin, licence, rows and bytes.",
    "verify": "Read every output and object that dvc.lock records.",
    "why": "Say why a stage would run now.",
}


class LateGroup(click.Group):
    """A group that imports a command's module, and torch behind it, only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return getattr(import_module(f"aurora.commands.{cmd_name}"), cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command is named {args[0]!r}; {remedy}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=LateGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="aurora", message="%(version)s")
def main() -> None:
    """Aurora: a Chinese instruction tune of Mixtral-8x7B in 4 bits, as a DVC pipeline.

    For completion in bash, put into ~/.bashrc: eval "$(_AURORA_COMPLETE=bash_source aurora)"
    """
    calm_bars()


if __name__ == "__main__":
    main()
