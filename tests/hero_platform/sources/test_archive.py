"""Archives: what is in them comes out, and what would reach beyond them or fill the disk is one sentence."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from hero_platform import files
from hero_platform.sources.archive import unpacked

CONTENT = {"release/a.h5": b"\x89HDF" * 3000, "release/sub/b.json": b"{}", "top.txt": b""}
MODES = {".tar": "w:", ".tar.gz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


@pytest.fixture(autouse=True)
def scratch_root(tmp_path, monkeypatch):
    """TMPDIR of this test; whatever happens, nothing stays there."""
    root = tmp_path / "tmp"
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    yield root
    assert list(root.iterdir()) == []


def write_tar(path: Path, members, mode="w:"):
    with tarfile.open(path, mode) as archive:
        for name, value in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(value, tuple):
                info.type, info.linkname = value
                archive.addfile(info)
            else:
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))


def write_zip(path: Path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if isinstance(value, tuple):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                value = value[1].encode()
            archive.writestr(info, value)


def refuse(path: Path) -> str:
    """The one sentence that an archive is refused with."""
    with pytest.raises(ValueError) as error, unpacked(str(path)):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ending", [*MODES, ".zip"])
def test_contents_come_out_and_go_again(ending, tmp_path, scratch_root):
    path = tmp_path / f"x{ending}"
    write_zip(path, CONTENT) if ending == ".zip" else write_tar(path, CONTENT, MODES[ending])
    with unpacked(str(path)) as folder:
        assert Path(folder).is_relative_to(scratch_root)
        assert {name: Path(folder, name).read_bytes() for name in files.tree(folder)} == CONTENT


def test_real_tools_write_folders_too(tmp_path):
    (tmp_path / "in/empty").mkdir(parents=True)
    (tmp_path / "in/a").write_text("x")
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        archive.add(tmp_path / "in", "./in")
    with unpacked(str(tmp_path / "x.tgz")) as folder:
        assert files.tree(folder) == ["in/a"]


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("features.npy", b"x")
    write_tar(tmp_path / "x.tar", {"b.npz": buffer.getvalue()})
    with unpacked(str(tmp_path / "x.tar")) as folder:
        assert files.tree(folder) == ["b.npz"]


def test_a_folder_is_given_as_it_is(tmp_path):
    with unpacked(str(tmp_path)) as folder:
        assert folder == str(tmp_path)
    assert tmp_path.exists()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "a/.."])
@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_paths_that_lead_out(name, ending, tmp_path, scratch_root):
    path = tmp_path / f"x{ending}"
    (write_tar if ending == ".tar" else write_zip)(path, {"good": b"x", name: b"evil"})
    assert refuse(path) == f"x{ending}: the path {name!r} leads out of it: refused"
    assert not [found for found in tmp_path.rglob("evil") if found.exists()]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(kind, tmp_path):
    write_tar(tmp_path / "x.tar", {"good": b"x", "bad": (kind, "good")})
    assert refuse(tmp_path / "x.tar") == "x.tar: 'bad' is a link or device: refused"


def test_a_link_in_a_zip(tmp_path):
    write_zip(tmp_path / "x.zip", {"bad": (None, "/etc/passwd")})
    assert refuse(tmp_path / "x.zip") == "x.zip: 'bad' is a link or device: refused"


@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
def test_bombs(ending, tmp_path):
    path = tmp_path / f"x{ending}"
    zeros = {f"{number}.h5": bytes(40 << 20) for number in range(2)}
    write_zip(path, zeros) if ending == ".zip" else write_tar(path, zeros, "w:gz")
    assert path.stat().st_size < 1 << 20
    assert refuse(path) == f"x{ending}: it unpacks to more than 100 times its size: refused"


def test_a_header_without_end(tmp_path):
    """Before the first file, so the size of files says nothing."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 20 << 20
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(1 << 20))
    assert refuse(tmp_path / "x.tar") == "x.tar: a header of 20,971,520 bytes: refused"


def test_the_same_name_twice(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a", "a"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert refuse(tmp_path / "x.tar") == "x.tar: 'a' stands in it twice: refused"
    write_tar(tmp_path / "y.tar", {"a": b"file", "a/b": b"in it"})
    assert refuse(tmp_path / "y.tar") == "y.tar: 'a/b' stands in it twice: refused"


def test_a_full_disk_is_told_before_it_is_full(tmp_path, monkeypatch):
    write_tar(tmp_path / "x.tar", {"a": b"x"})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: os.statvfs(folder) and type("Usage", (), {"free": 0}))
    assert "does not fit the disk" in refuse(tmp_path / "x.tar")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated(ending, share, tmp_path):
    path = tmp_path / f"x{ending}"
    members = {f"{number}": os.urandom(3000) for number in range(5)}
    write_zip(path, members) if ending == ".zip" else write_tar(path, members, MODES[ending])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)] if ending != ".tar" else
                     path.read_bytes()[: int(5 * 3584 * share) // 3584 * 3584])  # between two members  # fmt: skip
    assert "truncated" in (said := refuse(path)) or "not a readable" in said


def test_a_damaged_header_is_not_the_end(tmp_path):
    write_tar(tmp_path / "x.tar", {"a": b"x", "b": b"y"})
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[1024 + 148] ^= 255  # checksum of the second header
    (tmp_path / "x.tar").write_bytes(data)
    assert refuse(tmp_path / "x.tar") == "x.tar: the archive is truncated or damaged behind its last readable member"


def test_what_is_no_archive(tmp_path):
    (tmp_path / "x.txt").write_text("a story" * 100)
    assert "not a readable .tar or .zip" in refuse(tmp_path / "x.txt")
    assert "no folder or archive on this machine" in refuse(tmp_path / "none")
    with pytest.raises(ValueError, match="no folder or archive"), unpacked("s3://bucket/x.tar"):
        pass
