"""The application that commands belong to."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Brain volumes as training sets, maps and honest scores.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
catalog_app = typer.Typer(help="Catalogues of volumes.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog")
