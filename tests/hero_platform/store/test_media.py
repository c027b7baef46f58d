"""Which film a video comes from: covered by the digest, and no path leads out of the media root."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hero_platform.store.manifest import Manifest
from hero_platform.store.media import MEDIA, ROOT, Clip, Media, media_bytes, read_media
from hero_platform.store.reader import FeatureStore

CLIPS = [Clip("b.0", "deep/b.mkv", 0.0, 60.0), Clip("a", "a.mp4", 0.0, 13.013)]


@pytest.fixture
def store(tiny_store: str, tmp_path: Path) -> FeatureStore:
    """A store that says it was built from films."""
    root = tmp_path / "store"
    shutil.copytree(tiny_store, root)
    (root / MEDIA).write_bytes(media_bytes(CLIPS))
    manifest = Manifest.read(str(root))
    sha256 = hashlib.sha256(media_bytes(CLIPS)).hexdigest()
    replace(manifest, media_sha256=sha256, source={**manifest.source, ROOT: str(tmp_path / "films")}).write(str(root))
    return FeatureStore.open(str(root))


def test_the_clips_of_a_store(store: FeatureStore, tmp_path: Path, tiny_store: str):
    media = read_media(store)
    assert media == Media(str(tmp_path / "films"), {clip.video_id: clip for clip in CLIPS})
    assert media.path(media.clips["b.0"]) == str(tmp_path / "films" / "deep" / "b.mkv")
    first = json.loads((Path(store.root) / MEDIA).read_text().splitlines()[0])
    assert first == {"video_id": "a", "file": "a.mp4", "start": 0.0, "end": 13.013}
    assert store.digest != FeatureStore.open(tiny_store).digest and store.damaged() == []


def test_a_store_of_features_knows_no_films(tiny_store: str):
    with pytest.raises(ValueError, match="was not built from video files"):
        read_media(FeatureStore.open(tiny_store))


def test_damage_is_named(store: FeatureStore):
    path = Path(store.root) / MEDIA
    path.write_bytes(path.read_bytes().replace(b"a.mp4", b"b.mp4"))
    with pytest.raises(ValueError, match=r"media\.jsonl does not have the digest"):
        read_media(store)
    assert any(MEDIA in line for line in store.damaged())
    path.unlink()
    with pytest.raises(ValueError, match=r"media\.jsonl is missing"):
        read_media(store)


@pytest.mark.parametrize(
    "file", ["", "/etc/passwd", "../secret.mp4", "deep/../../secret.mp4", "./a.mp4", "deep//a.mp4", "a\0b.mp4"]
)
def test_no_text_leads_out_of_the_root(tmp_path: Path, file: str):
    for root in (str(tmp_path), "s3://bucket/films"):
        with pytest.raises(ValueError, match="is no path inside"):
            Media(root, {}).path(Clip("a", file, 0.0, 1.0))


def test_no_link_leads_out_of_the_root(tmp_path: Path):
    (tmp_path / "films").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "films" / "a.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "films" / "b.mp4").symlink_to(tmp_path / "films" / "c.mp4")
    media = Media(str(tmp_path / "films"), {})
    with pytest.raises(ValueError, match="leads out of"):
        media.path(Clip("a", "a.mp4", 0.0, 1.0))
    assert media.path(Clip("b", "b.mp4", 0.0, 1.0)) == str(tmp_path / "films" / "c.mp4")
    assert Media("s3://bucket/films", {}).path(Clip("b", "b.mp4", 0.0, 1.0)) == "s3://bucket/films/b.mp4"
