"""Check run folders against their manifests, and their masks against their tables. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lottery.errors import LotteryError
from lottery.files import Missing, read_bytes
from lottery.inventory.contents import header
from lottery.inventory.verify import Flaw, check_mask
from lottery.record.manifest import Manifest, read_file, read_manifest, same_study
from lottery.record.names import CONFIG, KEY, MANIFEST, TABLE, drawn_again, mask_file
from lottery.record.rows import identity, parse_row
from lottery.record.run import Run

AGAIN = "the study, run again, writes it anew"


def check_run(run: Path) -> list[Flaw]:
    """Return the flaws of a run folder, at most one a file."""
    masks = [flaw for path in Run(run).mask_files for flaw in check_mask(path)]
    found: dict[str, Flaw] = {}
    for flaw in (*masks, *_listed(run), *_table(run)):
        found.setdefault(flaw.where, flaw)
    return list(found.values())


def _listed(run: Path) -> Iterator[Flaw]:
    """Yield the flaws of files that do not match the manifest."""
    try:
        manifest = read_manifest(run)
    except LotteryError as error:
        yield Flaw(str(run), f"{error}")
        return
    if manifest is None:
        yield Flaw(str(run), f"has no {MANIFEST}, so that only its masks were checked; {AGAIN}", "note")
        if KEY.fullmatch(run.name) and not same_study(_content(run / CONFIG), run.name):
            what = "its key is not the folder's name: altered, or written by another version of lottery"
            yield Flaw(str(run / CONFIG), what, "note")
    for name in (manifest or Manifest()).files:
        try:
            read_file(run, name)
        except LotteryError as error:
            what = str(error).removeprefix(f"{run / name}: ")
            yield Flaw(str(run / name), what, "note" if drawn_again(name) else "damaged")


def _table(run: Path) -> Iterator[Flaw]:
    """Yield flaws for doubled rows, and for masks that do not match their rows. Damaged lines are skipped."""
    path, rows = run / TABLE, []
    for line in _content(path).splitlines():
        with suppress(LotteryError):
            rows.append(parse_row(line, path))
    if doubled := sum(count > 1 for count in Counter(map(identity, rows)).values()):
        yield Flaw(str(path), f"{doubled} rows are there more than once; {AGAIN}")
    for row in [row for row in rows if row["control"] is None]:
        mask = run / mask_file(row["round"])
        named = str(header(mask).get("digest", ""))
        if named != str(row["mask_digest"]):
            yield Flaw(str(mask), f"{'not the mask that the table names' if named else 'missing'}; {AGAIN}")


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except Missing:
        return b""
