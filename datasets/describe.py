"""The card of registered data sets: card.md, card.json and card.png (see README.md)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ctmasknet.data.duplicates import DEFAULT_DISTANCE
from ctmasknet.draw.card import draw_card
from ctmasknet.errors import command_line
from ctmasknet.files import atomic_write, check_writable, write_json
from ctmasknet.prepare.card import card_text, data_card


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("names", nargs="+", metavar="NAME", help="registered sets, such as all splits")
    p.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the card")
    p.add_argument(
        "--distance",
        type=int,
        default=DEFAULT_DISTANCE,
        help="as for check_leaks.py (default: %(default)s)",
    )
    p.add_argument("--seed", type=int, default=0, help="of the sample slices (default: 0)")
    p.add_argument("--workers", type=int, default=1, help="number of processes (default: 1)")
    return p


@command_line
def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    check_writable(args.output, folder=True)
    card = data_card(args.names, distance=args.distance, workers=args.workers)
    text = card_text(card)
    draw_card(card, args.output / "card.png", args.seed)
    write_json(args.output / "card.json", card, 1)
    with atomic_write(args.output / "card.md") as stream:
        stream.write(text)
    print(text)
    print(f"written: {args.output}/card.md, card.json, card.png")


if __name__ == "__main__":
    sys.exit(main())
