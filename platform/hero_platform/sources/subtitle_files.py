"""Subtitles from files: SRT, WebVTT, and HERO's jsonl records. Text in, `Subtitle`s out; no file is opened here."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any

from hero_platform.sources.base import Subtitle

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[,.](\d{1,3}))?"
_TIMING = re.compile(rf"\s*{_TIME}\s*-+>\s*{_TIME}(?:\s.*)?")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<\d[\d:.]*>|</>|\{\\[^{}]*\}")  # markup, VTT times inside a line, {\an8}
_VTT_BLOCK = re.compile(r"(NOTE|STYLE|REGION)(\s|$)")


@dataclass(frozen=True)
class SubtitleRecord:
    """The subtitles of one video, and its length where the file tells it."""

    subtitles: list[Subtitle]
    duration_s: float | None = None


def decode_text(data: bytes) -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        ValueError: the bytes are neither; other encodings are not guessed.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"undecodable text: byte {error.start} is not {error.encoding.upper()}; convert the file to UTF-8"
        ) from error


def parse_cues(text: str) -> list[Subtitle]:
    """Cues of an SRT or WebVTT file, in its order, without markup, lines joined by a blank; empty cues are left out.

    Counters may be missing or wrong, blank lines may be missing between cues or stand inside SRT text.

    Raises:
        ValueError: a timing line does not parse, or there is text but no timing line.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    is_vtt = lines[0].lstrip("\ufeff").startswith("WEBVTT")
    cues: list[tuple[float, float, list[str]]] = []
    body: list[str] | None = None  # lines of the cue being read
    skipping = is_vtt  # the header and NOTE, STYLE, REGION blocks last to the next blank line
    for number, line in enumerate(lines, start=1):
        if is_vtt and not line.strip():
            skipping, body = False, None
        elif skipping:
            continue
        elif is_vtt and body is None and _VTT_BLOCK.match(line):
            skipping = True
        elif "->" in line and (timing := _timing(line, number)) is not None:
            if body and not is_vtt and body[-1].strip().isdigit():
                body.pop()  # this cue's counter, read as text of the one before
            body = []
            cues.append((*timing, body))
        elif body is not None:
            body.append(line)
    if not cues and not is_vtt and text.strip("\ufeff \t\n\r"):
        raise ValueError("no subtitle timing line (00:00:01,000 --> 00:00:02,000) in the file")
    joined = [Subtitle(start_s, end_s, _clean(body)) for start_s, end_s, body in cues]
    return [subtitle for subtitle in joined if subtitle.text]


def parse_record(line: bytes) -> tuple[str, SubtitleRecord]:
    """One line of a jsonl: {"vid_name", "sub": [{"text", "start", "end"}], "duration"}; text is kept as written.

    Raises:
        ValueError: undecodable, not JSON, or a field is missing or has the wrong type.
    """
    try:
        record: Any = json.loads(decode_text(line))
        name, duration = record["vid_name"], record.get("duration")
        subtitles = [Subtitle(float(sub["start"]), float(sub["end"]), _string(sub["text"])) for sub in record["sub"]]
        return _string(name), SubtitleRecord(subtitles, None if duration is None else float(duration))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not a JSON line: {error}") from error
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a subtitle record (vid_name, sub: text, start, end): {error!r}") from error


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _timing(line: str, number: int) -> tuple[float, float] | None:
    """Start and end seconds of a timing line; None where an arrow merely stands in the text."""
    found = _TIMING.fullmatch(line)
    if found is not None:
        return _seconds(*found.groups()[:4]), _seconds(*found.groups()[4:])
    if "-->" in line:
        raise ValueError(f"line {number} is not a readable subtitle time: {line.strip()[:60]!r}")
    return None


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    millis = int((fraction or "0").ljust(3, "0"))
    return (int(hours or 0) * 3600_000 + int(minutes) * 60_000 + int(seconds) * 1000 + millis) / 1000


def _clean(body: list[str]) -> str:
    return " ".join(" ".join(_TAG.sub("", line) for line in body).replace("\x00", "").split())
