"""The bundled data is what its README says."""

from __future__ import annotations

import re
from pathlib import Path

from transformer.data.files import hash_file, read_blocks

DATA = Path(__file__).parents[2] / "data"
ROW = re.compile(r"^\| `([\w./]+)` \| ([\d,]+) \| ([\d,]+) \| `([0-9a-f]{64})` \|$", re.MULTILINE)


def test_every_file_has_its_stated_hash_and_size() -> None:
    rows = ROW.findall((DATA / "README.md").read_text(encoding="utf-8"))
    files = {path.relative_to(DATA).as_posix() for path in DATA.glob("[!.]*/*")}
    assert {name for name, *_ in rows} == files and len(files) == 10
    for name, lines, size, sha256 in rows:
        text = "".join(read_blocks(DATA / name))
        assert hash_file(DATA / name) == sha256
        assert (text.count("\n"), len(text.encode())) == (
            int(lines.replace(",", "")),
            int(size.replace(",", "")),
        )
