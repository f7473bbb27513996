"""The command `unnoise compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ...shared.errors import UsageError
from ...shared.training.folder import write_text
from ..comparison import compare
from .outputs import output_path

ENDINGS = (".md", ".csv", ".html")


@dataclass(frozen=True)
class Compare:
    """Compares evaluated runs and sets of samples in one table, and refuses to mix two ways of measuring in a column.

    Each of them has been evaluated by `unnoise evaluate`. A row states the sampler, its steps and network evaluations,
    the weights and the seed; a column has one measure by one protocol, which stands below the table. Of several
    evaluations of a run the newest with the protocol of the column is taken.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs or of samples, .npz or text files of samples, or files of the runs of an ablation."""
    out: Path | None = None
    """File to write the table to, as .md, .html, or .csv with all digits; None prints it alone."""
    measures: tuple[str, ...] = ()
    """Measures to compare, such as fid bits_per_dim; empty for all."""
    apart: bool = False
    """Whether numbers of different protocols have a column each, instead of being refused."""

    def execute(self) -> None:
        """Prints the table, and writes it."""
        if not self.runs:
            raise UsageError("give what to compare: unnoise compare RUN RUN ...")
        path = None if self.out is None else output_path(self.out, ENDINGS)
        found = compare(self.runs, self.measures, apart=self.apart)
        print(found.as_text())
        if path is not None:
            forms = {".md": found.as_markdown, ".html": found.as_html, ".csv": found.as_csv}
            print(f"\nwritten to {write_text(path, forms[path.suffix.lower()]())}")
