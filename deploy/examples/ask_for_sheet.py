"""Ask for a model sheet of a character, wait for it, and save it as PNG.

export ONMODEL_ADDRESS=http://127.0.0.1:8400 ONMODEL_KEY=…    # onmodel keys make sheets --owner pat --scope view --scope produce
python deploy/examples/ask_for_sheet.py lumen Pip --views front,side,back --expressions sad,surprised --to pip.png
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from studio.client import Client, ClientError, QuotaSpent, SheetWishes


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask for a model sheet of a character and save it as PNG.")
    parser.add_argument("brand")
    parser.add_argument("character")
    parser.add_argument("--views", default="front,three-quarter,side,back", help="by commas")
    parser.add_argument("--expressions", default="", help="by commas")
    parser.add_argument("--reason", default="", help="what it is for; it stands in the lineage")
    parser.add_argument("--to", type=Path, default=Path("sheet.png"))
    given = parser.parse_args()
    address, key = os.environ.get("ONMODEL_ADDRESS", "http://127.0.0.1:8400"), os.environ.get("ONMODEL_KEY", "")
    wishes: SheetWishes = {"views": words(given.views), "expressions": words(given.expressions)}
    try:
        with Client(address, key) as client:
            run = client.make_sheet(given.brand, given.character, reason=given.reason, **wishes)
            print(f"run {run.id}", file=sys.stderr)
            for event in client.follow(run.id):
                run = event.run
                print(f"{run.phase}: {run.done} of {run.total}", file=sys.stderr)
            if not run.succeeded:
                print(f"{run.state}: {run.problem or 'somebody cancelled it'}", file=sys.stderr)
                return 1
            given.to.write_bytes(client.sheet(run.id, "png"))
    except QuotaSpent as spent:
        print(f"{spent} Again in {spent.retry_after_s / 3600:.1f} hours.", file=sys.stderr)
        return 1
    except ClientError as error:
        print(f"{error}\n→ {error.next_step}", file=sys.stderr)
        return 1
    print(given.to)
    return 0


def words(given: str) -> list[str]:
    return [word.strip() for word in given.split(",") if word.strip()]


if __name__ == "__main__":
    sys.exit(main())
