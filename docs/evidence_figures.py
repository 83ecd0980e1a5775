"""The figures of ``docs/evidence.md`` of its own studies, from the files in ``docs/results/``.

python docs/evidence_figures.py
"""

import sys
from pathlib import Path

from ctmasknet.errors import command_line
from ctmasknet.files import read_json, replace_between_marks

DOCS = Path(__file__).parent


def coverage(studies: list[dict]) -> str:
    """How often 95 % intervals hold the truth, by the number of patients."""
    said = []
    for one in studies:
        held = [share for share in one["held"].values() if share is not None]
        said.append(f"{min(held):.1f} to {max(held):.1f} % at {one['patients']} patients")
    return (
        f"Of {len(studies[0]['held'])} figures, each on {studies[0]['simulations']} data sets, the "
        f"intervals hold the truth in {', '.join(said)}."
    )


def kills(killed: dict, places: dict) -> str:
    """What became of works that were ended, and of tools that could not write."""
    return (
        f"`{killed['command']}`: {killed['kills']} works of the tools ended at seeded moments and "
        f"called again, {killed['faults']} of them not as the unbroken run left them "
        f"(`results/kills.json`). `{places['command']}`: {places['tries']} tries of "
        f"{len(places['tools'])} calls at places that cannot be written, {places['wrong']} of them "
        "without one line that names the path, or with a file half-written (`results/places.json`)."
    )


@command_line
def main() -> None:
    path, results = DOCS / "evidence.md", DOCS / "results"
    found = {name: read_json(results / f"{name}.json") for name in ("kills", "places")}
    replace_between_marks(path, "coverage", coverage(read_json(results / "interval_coverage.json")))
    replace_between_marks(path, "kills", kills(found["kills"], found["places"]))


if __name__ == "__main__":
    sys.exit(main())
