"""Tables on standard output that cut nothing off, least of all names: those are what the next command is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Into a pipe or a file a line may be as long as it is; wider than any table, and rich wants a number.
UNLIMITED = 10_000


def table_console() -> Console:
    """A console on standard output: as wide as the terminal, and without a limit for whatever else reads it."""
    console = Console()
    return console if console.file.isatty() else Console(width=UNLIMITED)


def print_table(console: Console, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows whose first cell is a name.

    On a terminal that is too narrow first the lines between the columns go, and then the columns: a paragraph a row.
    """
    rows = list(rows)
    unlimited = console.options.update(width=UNLIMITED)
    for table in (_table(headers, rows, boxed=True), _table(headers, rows, boxed=False)):
        needed = table.__rich_measure__(console, unlimited)
        # Columns may break between words and nowhere else; a box is for tables that need not even that.
        if (needed.maximum if table.box else needed.minimum) <= console.width:
            console.print(table)
            return
    for name, *cells in rows:
        facts = [f"{header} {cell}" for header, cell in zip(headers[1:], cells, strict=True) if cell]
        console.print(Text(name, "bold"), soft_wrap=True)
        console.print(Text(f"  {'; '.join(facts)}"))


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, boxed: bool) -> Table:
    table = Table(*headers) if boxed else Table(*headers, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.columns[0].no_wrap = True  # or rich would take from the widest column, names or not
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as text: a label may have what rich takes for markup
    return table
