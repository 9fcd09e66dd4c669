"""``python -m benchmarks.studies.tasks``: writes the data of the tasks that ship, or says with ``--check`` which differ."""

from __future__ import annotations

import argparse

from benchmarks.studies.tasks.make import lines
from pipeline.evaluate.harness.shipped import OWN, SHIPPED


def main() -> int:
    """Writes or compares all five."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a file differs")
    check = parser.parse_args().check
    differing = 0
    for name in OWN:
        path, wanted = SHIPPED / f"{name}.jsonl", lines(name).encode()
        if check and path.read_bytes() != wanted:
            print(f"{path.name} is not what the lists give.")
            differing += 1
        if not check:
            path.write_bytes(wanted)
    return min(1, differing)


if __name__ == "__main__":
    raise SystemExit(main())
