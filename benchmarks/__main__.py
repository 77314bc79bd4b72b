"""`python -m benchmarks [NAME ..]`: measure, print, and write docs/results/."""

from __future__ import annotations

import argparse
import sys

from benchmarks.measures import MEASURES
from benchmarks.models import MODELS
from benchmarks.networks import NAMES


def main() -> int:
    """Run the benchmarks that are named, or all; 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(MEASURES)} (default: all)")
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=(*NAMES, *MODELS),
        default=NAMES,
        metavar="NETWORK",
        help=f"of {', '.join(NAMES)}; of passes and compile_set: {', '.join(MODELS)}",
    )
    args = parser.parse_args()
    names: list[str] = args.names or list(MEASURES)
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}': {', '.join(MEASURES)}")
    good = True
    for name in names:
        print(f"{name}:", flush=True)
        result = MEASURES[name](args.networks)
        result.write()
        print("\n" + result.markdown())
        good = good and result.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
