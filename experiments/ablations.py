"""What the guide says of the ablations, from the folders of their runs.

    python experiments/ablations.py --runs=runs [--page=docs/guide/ablations.md]

`--runs` holds the work directories of sweeps by the names of their experiments (`runs/mask_rate`). Of each that is
there, what the page has between `<!-- mask_rate -->` and `<!-- / -->` becomes the sweep's `report.md` without its
title, and its figures are copied to `docs/images/mask_rate/`. All else in the page stays as it is.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from absl import app, flags, logging

from lepton_jax.core.errors import UserError
from lepton_jax.report import write_sweep
from lepton_jax.workdir import replace_file

RUNS = flags.DEFINE_string("runs", "runs", "The folder of the sweeps' folders.")
PAGE = flags.DEFINE_string("page", str(Path(__file__).parents[1] / "docs" / "guide" / "ablations.md"), "The page.")


def publish(runs: Path, page: Path) -> list[str]:
    """Writes what sweeps found into a page, and returns their names.

    Args:
      runs: the folder of the sweeps' folders.
      page: a Markdown file with a pair of comments for each experiment; figures go to `../images/NAME` of it.

    Raises:
      UserError: no experiment of the page is in `runs`, or its runs are damaged.
    """
    text = page.read_text(encoding="utf-8")
    found = [name for name in re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE) if (runs / name).is_dir()]
    if not found:
        raise UserError(f"{runs}: has no folder of an experiment that {page} has")
    for name in found:
        write_sweep(runs / name)
        _, _, body = (runs / name / "report.md").read_text(encoding="utf-8").partition("\n\n")
        images = page.parent.parent / "images" / name
        shutil.rmtree(images, ignore_errors=True)
        images.mkdir(parents=True)
        for figure in re.findall(r"\]\(figures/([^)]+)\)", body):
            shutil.copyfile(runs / name / "figures" / figure, images / figure)
        body = body.replace("](figures/", f"](../images/{name}/").strip()
        block = re.compile(rf"^<!-- {name} -->\n.*?^<!-- / -->$", re.MULTILINE | re.DOTALL)
        text, count = block.subn(lambda _, body=body, name=name: f"<!-- {name} -->\n\n{body}\n\n<!-- / -->", text)
        if count != 1:
            raise UserError(f"{page}: must have <!-- {name} --> once, and <!-- / --> after it")
    replace_file(page, text)
    return found


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        print(*publish(Path(RUNS.value), Path(PAGE.value)), sep="\n")
    except UserError as error:
        raise SystemExit(f"ablations: {error}") from None


if __name__ == "__main__":
    app.run(main)
