"""SRT, WebVTT and jsonl as people write them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hero_platform.sources.base import Subtitle
from hero_platform.sources.subtitle_files import decode_text, parse_cues, parse_record


def test_srt():
    text = """1
00:00:12,400 --> 00:00:13,700
[squawk]

2
01:00:04.1 --> 01:00:08.25  X1:100 X2:200
{\\an8}<i>Who's the most <font color="#ff0000">phenominal</font>
Extra ordinary fellow?</i>

3
00:00:20,000 --> 00:00:21,000
<b></b>
"""
    assert parse_cues(text) == [
        Subtitle(12.4, 13.7, "[squawk]"),
        Subtitle(3604.1, 3608.25, "Who's the most phenominal Extra ordinary fellow?"),
    ]


def test_srt_without_counters_or_blank_lines():
    text = (
        "00:00:01,000 --> 00:00:02,000\none\n00:00:03,000 --> 00:00:04,000\n42\n\n7\n00:00:05,000 --> 00:00:06,000\nx\n"
    )
    assert parse_cues(text) == [Subtitle(1, 2, "one"), Subtitle(3, 4, "42"), Subtitle(5, 6, "x")]


def test_srt_text_over_a_blank_line():
    text = "1\n00:00:01,000 --> 00:00:02,000\none\n\ntwo\n\n2\n00:00:03,000 --> 00:00:04,000\nthree"
    assert [cue.text for cue in parse_cues(text)] == ["one two", "three"]


def test_vtt():
    text = """WEBVTT - title
Kind: captions

STYLE
::cue { color: lime }

NOTE 00:00:00.000 --> 00:00:09.000 is not a cue

intro
00:01.000 --> 00:02.500 align:start position:10%
<v Roger>Hi <00:00:01.500>there</v>

NOTE
two lines
of comment

00:00:03.000 --> 00:00:04.000
NOTE is text here
a -> b
"""
    assert parse_cues(text) == [Subtitle(1.0, 2.5, "Hi there"), Subtitle(3.0, 4.0, "NOTE is text here a -> b")]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_line_ends_and_encodings(ending, encoding):
    text = ending.join(["1", "00:00:01,000 --> 00:00:02,000", "caf\u00e9 \u266a", "", ""])
    assert parse_cues(decode_text(text.encode(encoding))) == [Subtitle(1, 2, "caf\u00e9 \u266a")]


def test_other_encodings_are_not_guessed():
    with pytest.raises(ValueError, match=r"undecodable text: byte 3 is not UTF-8; convert"):
        decode_text("caf\u00e9".encode("cp1252"))
    with pytest.raises(ValueError, match="undecodable text"):
        decode_text(b"\xff\xfe\x00")


@pytest.mark.parametrize("text", ["", "\ufeff", " \n\n", "WEBVTT\n"])
def test_no_subtitles_at_all(text):
    assert parse_cues(text) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("just a story", "no subtitle timing line"),
        ("1\n00:00:01,000 --> later\nx", "line 2 is not a readable subtitle time"),
        ("1\n-00:00:01,000 --> 00:00:02,000\nx", "line 2 is not a readable subtitle time"),
    ],
)
def test_not_subtitles(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_cues(text)


def test_record():
    line = {"vid_name": "a", "duration": 9, "sub": [{"text": " Hi &amp; bye", "start": 1, "end": 2.5}]}
    name, record = parse_record(json.dumps(line).encode())
    assert (name, record.duration_s, record.subtitles) == ("a", 9.0, [Subtitle(1.0, 2.5, " Hi &amp; bye")])


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"null", b'{"vid_name": "a"}', b'{"vid_name": 3, "sub": []}', b'{"vid_name": "a", "sub": [1]}'],
)
def test_bad_records(line):
    with pytest.raises(ValueError, match=r"not a JSON line|not a subtitle record"):
        parse_record(line)


@settings(max_examples=200, deadline=None)
@given(
    cues=st.lists(
        st.tuples(st.integers(0, 10**8), st.integers(0, 10**6), st.text("abc <>{}-'\u00e9", min_size=1, max_size=20)),
        max_size=6,
    ),
    counters=st.booleans(),
)
def test_what_is_written_is_read(cues, counters):
    def clock(millis):
        hours, rest = divmod(millis, 3600_000)
        return f"{hours:02}:{rest // 60_000:02}:{rest // 1000 % 60:02},{rest % 1000:03}"

    cues = [(start, start + length, text.replace("->", "")) for start, length, text in cues]
    blocks = [f"{clock(start)} --> {clock(end)}\n{text}\n" for start, end, text in cues]
    if counters:
        blocks = [f"{number}\n{block}" for number, block in enumerate(blocks, start=1)]
    read = parse_cues("\n".join(blocks))
    times = [(start / 1000, end / 1000) for start, end, text in cues]
    assert [(cue.start_s, cue.end_s) for cue in read if cue.text] == [
        time for time, (_, _, text) in zip(times, cues, strict=True) if _has_words(text)
    ]


def _has_words(text):
    (cue,) = parse_cues(f"00:00:00,000 --> 00:00:01,000\n{text}") or [Subtitle(0, 0, "")]
    return bool(cue.text)
