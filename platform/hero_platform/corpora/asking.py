"""The word a question asks with: how results on questions are grouped, since no corpus says what type a question is."""

from __future__ import annotations

import re

OTHER = "other"
_ASKING = re.compile(r"\b(who|whose|whom|what|which|where|when|why|how)\b", re.IGNORECASE)


def asking_word(text: str) -> str:
    """The first of who, what, where, ... in a question, lower-case; "other" if there is none."""
    found = _ASKING.search(text)
    return found.group().lower() if found else OTHER
