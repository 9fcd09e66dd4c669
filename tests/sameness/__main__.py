"""``python -m tests.sameness --check FILE`` or ``--write FILE``: whether everything that is computed has the bytes it had."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.sameness.baseline import DIGESTS, PARTS, NoBaseline, kept, made_anew, write
from tests.sameness.digests import differences


def main() -> int:
    """0: all as it was, or written; 1: something differs; 2: nothing is kept for this machine."""
    parser = argparse.ArgumentParser(prog="python -m tests.sameness", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", type=Path, metavar="FILE", nargs="?", const=DIGESTS, help=f"compare; without FILE: with {DIGESTS.name}")
    what.add_argument("--write", type=Path, metavar="FILE", nargs="?", const=DIGESTS, help="keep, beside what other machines kept")
    parser.add_argument("--only", choices=PARTS, action="append", help="of the parts; may be given again")
    wanted = parser.parse_args()
    return max(_write(part, wanted.write) if wanted.write else _check(part, wanted.check) for part in wanted.only or PARTS)


def _write(part: str, path: Path) -> int:
    write(part, found := made_anew(part), path)
    print(f"{part}: {len(found)} digests are in {path}.")
    return 0


def _check(part: str, path: Path) -> int:
    try:
        before = kept(part, path)
    except NoBaseline as nothing:
        print(nothing)
        return 2
    different = differences(before, made_anew(part))
    print("\n".join([*different, f"{part}: {len(before)} digests kept, {len(different)} differences."]))
    return int(bool(different))


if __name__ == "__main__":
    raise SystemExit(main())
