"""How the verbs speak: results on the standard output, everything else on the standard error."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Wider than any table: each takes its natural width, and no name is cut off in a pipe or a narrow terminal.
out = Console(highlight=False, soft_wrap=True, width=500)
err = Console(highlight=False, soft_wrap=True, stderr=True)


def show_error(message: str) -> None:
    """One message on the standard error; never read as markup, since paths may hold brackets."""
    err.print(Text.assemble(("error: ", "bold red"), message))


def say(message: str) -> None:
    """A line about what goes on, on the standard error."""
    err.print(Text(message))


def show(message: str) -> None:
    """A line of the result, on the standard output."""
    out.print(Text(message))


def show_table(columns: Iterable[str], rows: Iterable[Iterable[Any]], *, text_columns: int = 1) -> None:
    """A table on the standard output; the first `text_columns` are aligned to the left, numbers to the right.

    Columns that are all called "" have no line of names above them.
    """
    columns = list(columns)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for index, column in enumerate(columns):
        justify = "left" if index < text_columns else "right"
        table.add_column(column, justify=justify, header_style="bold", no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    out.print(table)
