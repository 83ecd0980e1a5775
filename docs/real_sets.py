"""Tables from which the preparations make the real sets of ``configs/experiments/``.

    python docs/real_sets.py lesion_free --images DIR --output lesion_free.json
    python docs/real_sets.py soares --raw RAW --output FOLDER
    python docs/real_sets.py mosmed --raw RAW --output FOLDER

``lesion_free`` is a COCO json of pictures that show no lesion. ``soares`` and ``mosmed`` are CSV
lists of two halves, ``a.csv`` and ``b.csv``: what one trains on the other tests. The halves of the
SARS-CoV-2 CT-scan set keep its groups whole (``groups.csv``: its slices have no patients), those of
MosMed are every second study, normal (CT-0) against grade 2 (``ct2_a.csv``) or 1 (``ct1_a.csv``).
"""

import argparse
import csv
import sys
from pathlib import Path

from ctmasknet.csv_tables import read_csv_rows
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.files import atomic_write, write_json

_HALVES = ("a", "b")


def lesion_free(images: Path) -> dict:
    from PIL import Image

    files = sorted(images.glob("*.png"))
    if not files:
        raise CTMaskNetError(f"{images}: holds no PNG; prepare it first")
    sizes = [Image.open(path).size for path in files]
    return {
        "images": [
            {"id": number, "file_name": path.name, "width": width, "height": height}
            for number, (path, (width, height)) in enumerate(zip(files, sizes, strict=True), 1)
        ],
        "categories": [{"id": 1, "name": "lesion"}],
        "annotations": [],
    }


def soares(raw: Path) -> dict[str, list[list[str]]]:
    """Rows of each half; every second group is the other's."""
    rows = [row for _, row in read_csv_rows(raw / "soares/index.csv", ("file", "class", "group"))]
    groups = sorted({row["group"] for row in rows}, key=lambda group: int(group.strip("s")))
    side = {group: number % 2 for number, group in enumerate(groups)}
    names = {"covid": "covid", "noncovid": "normal"}
    return {
        half: [
            [row["file"], names[row["class"]], row["group"], _split(side[row["group"]] == index)]
            for row in rows
        ]
        for index, half in enumerate(_HALVES)
    }


def mosmed(raw: Path) -> dict[str, list[list[str]]]:
    """Rows of each half, of either grade against CT-0, of grade 1 no more than of CT-0."""
    table = raw / "mosmed/studies.csv"
    rows = [row for _, row in read_csv_rows(table, ("file", "study", "ct_grade"))]
    of_grade = {g: [row for row in rows if row["ct_grade"] == g] for g in ("0", "1", "2")}
    for grade, own in of_grade.items():
        if len(own) < 2:
            raise CTMaskNetError(f"{table}: has {len(own)} studies of ct_grade {grade}; needs two")
    found = {}
    for grade in ("1", "2"):
        ill = of_grade[grade][: len(of_grade["0"])]
        both = [(row, "normal") for row in of_grade["0"]] + [(row, "covid") for row in ill]
        for index, half in enumerate(_HALVES):
            found[f"ct{grade}_{half}"] = [
                [f"mosmed/{row['file']}", name, row["study"], _split(number % 2 == index)]
                for number, (row, name) in enumerate(both)
            ]
    return found


def _split(trained_on: bool) -> str:
    return "train" if trained_on else "test"


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["lesion_free", "soares", "mosmed"])
    parser.add_argument("--raw", type=Path, help="folder of soares/ and mosmed/")
    parser.add_argument("--images", type=Path, help="of lesion_free: the pictures")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.what == "lesion_free":
        if args.images is None:
            raise CTMaskNetError("lesion_free: needs `images`")
        write_json(args.output, lesion_free(args.images))
        return
    if args.raw is None:
        raise CTMaskNetError(f"{args.what}: needs `raw`")
    lists = {"soares": soares, "mosmed": mosmed}[args.what](args.raw)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, rows in lists.items():
        with atomic_write(args.output / f"{name}.csv") as stream:
            csv.writer(stream).writerows([["path", "class", "patient", "split"], *rows])


if __name__ == "__main__":
    sys.exit(main())
