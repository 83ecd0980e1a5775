"""The card of registered data sets: card.md, card.json and card.png; or COVIDx-CT's lists and
their metadata.csv counted side by side (see README.md).

    python datasets/describe.py covidx_ct_train covidx_ct_val --output card
    python datasets/describe.py --list test=test_COVIDx_CT-3A.txt --metadata metadata.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

from ctmasknet.data.duplicates import DEFAULT_DISTANCE
from ctmasknet.draw.card import draw_card
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.files import atomic_write, check_writable, write_json
from ctmasknet.overrides import ToolParser
from ctmasknet.prepare.arguments import parse_assignments
from ctmasknet.prepare.card import card_text, data_card
from ctmasknet.prepare.list_table import count_lists, list_table_text
from ctmasknet.prepare.lists import find_standard_lists


def parser() -> ToolParser:
    p = ToolParser(description=__doc__)
    p.add_argument("names", nargs="*", metavar="NAME", help="registered sets, such as all splits")
    p.add("output", type=Path, help="folder of the card")
    p.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="SPLIT=FILE",
        help="instead of sets: a list of COVIDx-CT; repeat for each split",
    )
    p.add_argument(
        "--source",
        metavar="DIR",
        help="instead of --list: folder of {train,val,test}_COVIDx_CT.txt",
    )
    p.add_argument("--metadata", metavar="CSV", help="with --list or --source: metadata.csv")
    p.add_argument(
        "--distance",
        type=int,
        default=DEFAULT_DISTANCE,
        help="as for check_leaks.py (default: %(default)s)",
    )
    p.add("seed", help="of the sample slices (default: %(default)s)")
    p.add("workers")
    return p


@command_line
def main(argv: list[str] | None = None) -> int:
    """Returns 1 when lists and metadata differ."""
    args = parser().parse_args(argv)
    if args.list or args.source or args.metadata:
        if args.names or args.output or not args.metadata or bool(args.list) == bool(args.source):
            raise CTMaskNetError(
                "counts of lists need --metadata CSV and either --list or --source, and no sets "
                "or --output"
            )
        lists = parse_assignments(args.list, "list") or find_standard_lists(args.source)[0]
        found = count_lists(lists, args.metadata)
        print(list_table_text(found))
        return 1 if found["differences"] else 0
    if not args.names or not args.output:
        raise CTMaskNetError("give names of registered sets and --output DIR, or lists")
    check_writable(args.output, folder=True)
    card = data_card(args.names, distance=args.distance, workers=args.workers)
    text = card_text(card)
    draw_card(card, args.output / "card.png", args.seed)
    write_json(args.output / "card.json", card, 1)
    with atomic_write(args.output / "card.md") as stream:
        stream.write(text)
    print(text)
    print(f"written: {args.output}/card.md, card.json, card.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
