"""`setdet analyze …`: looking into what a detector does."""

import typer

from setdet.cli.analyze.errors import errors

app = typer.Typer(help="Look into what a detector does.", no_args_is_help=True)
app.command(name="errors")(errors)


@app.callback()
def _analyze() -> None:
    """Keeps the name of a lone command: typer would make it the group itself."""
