"""Runs as pages to look at: one self-contained `report.html` of a run or of many, and summaries for the terminal.

Everything comes from the files in the run folders. The page loads nothing from elsewhere, its texts are escaped,
and what it shows by colour it also shows by shape or number, so that a grey print reads the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepton_jax.report.page import document, escape
from lepton_jax.report.runs import run_section
from lepton_jax.report.summary import comparison_tables, details, examples_table, summary_section, summary_table
from lepton_jax.report.sweep import Question, write_runs, write_sweep
from lepton_jax.workdir import replace_file

__all__ = [
    "Question", "comparison_tables", "examples_table", "summary_table", "write_report", "write_runs", "write_sweep"
]  # fmt: skip


def write_report(path: Path, runs: Mapping[str, Path], summary: Mapping[str, Any]) -> None:
    """Writes the page of one or more runs to `path`, replacing an older one.

    Of each run it shows what its folder holds: config.json (required), metrics.jsonl, and predictions.jsonl with
    lines {"text", "label", "prediction", "score"}, whose labels are names or, for a regression, numbers.

    Args:
      path: the page, such as WORKDIR/report.html.
      runs: title of each section ("pretrain", "finetune", ...) -> the run's folder.
      summary: metric -> value; a dot in a metric's name ends the name of its group.

    Raises:
      UserError: a run's file is missing or damaged, or the page cannot be written.
    """
    sections = [run_section(title, folder) for title, folder in runs.items()]
    body = [
        f"<h1>Report</h1>\n<p class='note'>{escape(', '.join(runs))}</p>\n", summary_section(summary), *sections,
        details(summary),
    ]  # fmt: skip
    replace_file(path, document("lepton_jax report", "".join(body)))
