"""`aurora lm_eval …`: lm-eval's own command line, which knows the model hf-prefix here."""

import sys

import click


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(arguments: tuple[str, ...]) -> None:
    """Run lm-eval with ARGUMENTS. lm-eval finds models that its own package lists and those that are imported before."""
    from lm_eval.__main__ import cli_evaluate

    import aurora.eval.prefix  # noqa: F401  registers hf-prefix

    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
