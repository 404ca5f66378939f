"""Plain tables: rows of a CSV, as the tasks `layers` and `ood` write them, on a terminal and back."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.markup import escape
from rich.table import Table

from ncdd.report.table import number, wide_console
from ncdd.runfolder import write_text

TABLES = (  # what tasks leave in a run's folder
    "layers.csv",
    "ood.csv",
    "evaluate.csv",
    "collapse.csv",
    "continual.csv",
    "membership.csv",
)
NAMES = ("layer", "score", "set", "network", "protocol", "split")  # columns of text
COUNTS = ("n", "steps", "step", "chunk", "classes", "images", "memory_mb")  # columns of whole numbers
Row = Mapping[str, Any]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A CSV, whole or not at all; the first row's keys are its columns. None and NaN are blanks."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)
    write_text(path, out.getvalue())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of such a CSV, numbers as such but in the columns that hold names; NaN for a blank."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v if k in NAMES else _number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _number(text: str | None) -> int | float:
    return int(text) if text and text.isdigit() else float(text or "nan")


def print_rows(rows: Sequence[Row], *, title: str) -> None:
    """A table for reading: text to the left, numbers to the right, accuracies in percent, long names over lines."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name, value in rows[0].items():
        justify: Literal["left", "right"] = "left" if isinstance(value, str) else "right"
        table.add_column(re.sub(r"/|_+", "\n", name), justify=justify, vertical="bottom")
    for row in rows:
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    console = wide_console()
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def _cell(name: str, value: Any) -> str:
    """Text as it is, counts in full, other numbers as `number` shows them, '-' for none."""
    if isinstance(value, str):
        return escape(value)
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if name in COUNTS else number(name, value)
