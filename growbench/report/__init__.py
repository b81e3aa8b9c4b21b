"""The report of one experiment: index.html, savings.md, phases.csv, and every plot as PNG and SVG with its data.

The data of the plot of savings is savings.csv.
"""

from __future__ import annotations

from pathlib import Path

from growbench import analysis
from growbench.config import UsageError
from growbench.report import page, plots


def make(folder: Path, out: Path | None = None, target_loss: float | None = None) -> Path:
    """Write the report of the runs in `folder` to `out` (default: `folder`/report), and give the path of its index.html.

    Raises UsageError when there is nothing to compare, or `out` cannot be written.
    """
    comparison = analysis.analyse(folder, target_loss)
    out = out or folder / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
        comparison.outcomes.to_csv(out / "savings_by_seed.csv", index=False)
        analysis.phases(comparison).to_csv(out / "phases.csv", index=False)
        (out / "savings.md").write_text(page.markdown(comparison), encoding="utf-8")
        images = plots.save(comparison, out)
        index = out / "index.html"
        index.write_text(page.html(comparison, images), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the report to {out}: {error.strerror}; choose another folder with --out") from error
    return index
