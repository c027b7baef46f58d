"""What the shipper of metrics remembers between the starts of a run (ADR 0009)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from hero_platform import files

FILE = "tracking.json"


@dataclass
class Note:
    """How far this run has come on one server; a local file, rebuilt from the server when it is lost."""

    uri: str
    run_id: str
    shipped: int  # bytes of the journal the server holds
    clean: bool  # the last start ended with everything sent

    def save(self, path: Path) -> None:
        """Replace the file; not forced to the disk, since losing it costs only questions to the server."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.__dict__), encoding="utf-8")
        os.replace(temporary, path)

    @staticmethod
    def of_another_host(path: str, uri: str) -> Note | None:
        """Which run of this server belongs to a remote folder, without how far it has come; None as `load`."""
        try:
            note = Note(**files.read_json(path)) if path else None
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return None if note is None or note.uri != uri else replace(note, shipped=0, clean=False)

    @staticmethod
    def load(path: Path, uri: str) -> Note | None:
        """The note about this server; None when there is none, or only one about another server."""
        try:
            note = Note(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return note if note.uri == uri else None
