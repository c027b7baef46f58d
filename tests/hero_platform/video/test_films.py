"""Films are found at any depth, with their subtitle files; what cannot be a film is a reject with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hero_platform.video.films import describe_films, find_films


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_films_are_found_at_any_depth_in_the_order_of_their_paths(tmp_path: Path):
    put(tmp_path, "b.MP4", "season/two/a.mkv", "notes.txt", "a.jpg")
    films, rejects = find_films(str(tmp_path), ["en"])
    assert [(film.id, film.file, film.size) for film in films] == [
        ("b", "b.MP4", 5),
        ("a", "season/two/a.mkv", 16),
    ]
    assert rejects == []
    assert [film.id for film in find_films(str(tmp_path), ["en"], by_path=True)[0]] == ["b", "season/two/a"]


@pytest.mark.parametrize(
    ("beside", "chosen"),
    [
        (["a.srt", "a.vtt", "a.en.srt"], "a.srt"),
        (["a.vtt", "a.en.srt"], "a.vtt"),
        (["a.de.srt", "a.en.vtt", "a.fr.srt"], "a.en.vtt"),
        (["a.de.srt", "a.EN-us.vtt"], "a.EN-us.vtt"),
        (["a.de.srt", "a.fr.vtt"], "a.fr.vtt"),
        (["a.de.srt"], ""),
        (["a.SRT", "a.en.vtt"], "a.SRT"),
        (["ab.srt", "a.txt"], ""),
    ],
)
def test_the_subtitle_file_of_the_best_language(tmp_path: Path, beside: list[str], chosen: str):
    put(tmp_path, "a.mp4", *beside)
    ((film,), _) = find_films(str(tmp_path), ["en", "fr"])
    assert film.sidecar == chosen


def test_films_of_one_name_are_rejects_that_say_what_helps(tmp_path: Path):
    put(tmp_path, "one/a.mp4", "two/a.mp4", "b.mp4", "b.mkv")
    films, rejects = find_films(str(tmp_path), [])
    assert films == []
    assert {reject.where for reject in rejects} == {"one/a.mp4", "two/a.mp4", "b.mp4", "b.mkv"}
    assert all("2 films have this name: --ids path tells them apart" in reject.reason for reject in rejects)
    films, rejects = find_films(str(tmp_path), [], by_path=True)
    assert [film.id for film in films] == ["one/a", "two/a"] and {reject.id for reject in rejects} == {"b"}


def test_links_that_stay_inside_count_and_others_do_not(tmp_path: Path):
    outside = put(tmp_path / "outside", "secret.mp4", "deep/x.mp4")
    root = put(tmp_path / "films", "a.mp4", "sub/b.mp4")
    (root / "inside.mp4").symlink_to(root / "a.mp4")
    (root / "leak.mp4").symlink_to(outside / "secret.mp4")
    (root / "nowhere.mp4").symlink_to(root / "gone.mp4")
    (root / "folder").symlink_to(outside / "deep")
    (root / "again").symlink_to(root / "sub")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.mp4")
    films, rejects = find_films(str(root), [])
    assert {film.file for film in films} == {"a.mp4", "inside.mp4", "sub/b.mp4"}
    assert {reject.where: reject.reason.split(" that ")[-1] for reject in rejects} == {
        "leak.mp4": "leads out of the folder",
        "nowhere.mp4": "leads nowhere",
        "folder": "leads out of the folder",
        "pipe.mp4": "no regular file",
    }


def test_a_name_that_is_no_text_is_a_reject(tmp_path: Path):
    put(tmp_path, "a.mp4")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")).write_bytes(b"x")
    films, (reject,) = find_films(str(tmp_path), [])
    assert [film.id for film in films] == ["a"]
    assert reject.id == "'\\udcff" and "not UTF-8" in reject.reason


@pytest.mark.parametrize(("names", "said"), [([], "no folder there"), (["a.txt"], "no films there")])
def test_a_folder_without_films_is_one_sentence(tmp_path: Path, names: list[str], said: str):
    put(tmp_path / "films", *names) if names else None
    with pytest.raises(ValueError, match=said):
        find_films(str(tmp_path / "films"), [])


def test_the_digest_of_the_films_sees_sizes_names_and_subtitles(tmp_path: Path):
    def digest() -> str:
        return describe_films(str(tmp_path), find_films(str(tmp_path), [])[0])

    put(tmp_path, "a.mp4", "a.srt")
    seen = {digest()}
    (tmp_path / "a.mp4").write_bytes(b"longer than it was")
    seen.add(digest())
    (tmp_path / "a.srt").write_bytes(b"a.srd")
    seen.add(digest())
    put(tmp_path, "b.mp4")
    seen.add(digest())
    assert len(seen) == 4
