"""`setdet analyze …`: looking into what a detector does."""

import typer

from setdet.cli.analyze.attention import attention
from setdet.cli.analyze.errors import errors
from setdet.cli.analyze.layers import layers
from setdet.cli.analyze.queries import queries

app = typer.Typer(help="Look into what a detector does.", no_args_is_help=True)
app.command(name="queries")(queries)
app.command(name="layers")(layers)
app.command(name="attention")(attention)
app.command(name="errors")(errors)
