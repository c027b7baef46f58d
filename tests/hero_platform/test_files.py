import time
from pathlib import Path
from uuid import uuid4

import pytest

from hero_platform import files


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    """A folder on disk, and one behind fsspec as S3 is."""
    return str(tmp_path / "root") if request.param == "local" else f"memory://{uuid4().hex}"


def test_write_read_list_and_remove(root):
    files.makedirs(root)
    files.write_json(files.join(root, "a", "x.json"), {"k": "\u00e9"})
    files.write_bytes(files.join(root, "b.bin"), b"123")
    assert files.read_json(files.join(root, "a/x.json")) == {"k": "\u00e9"}
    assert files.size_of(files.join(root, "b.bin")) == 3
    assert files.listdir(root) == ["a", "b.bin"]
    assert files.tree(root) == ["a/x.json", "b.bin"]
    entries = files.entries(root)
    assert entries["b.bin"].bytes == 3 and abs(time.time() - entries["a/x.json"].changed_s) < 60
    files.remove(files.join(root, "b.bin"))
    files.remove(files.join(root, "b.bin"))
    assert files.listdir(root) == ["a"]
    files.remove_tree(root)
    files.remove_tree(root)
    assert not files.exists(files.join(root, "a/x.json"))


def test_a_part_of_a_file_and_what_is_known_of_it(root):
    path = files.join(root, "deep", "x")
    files.write_bytes(path, b"0123456789")
    assert files.read_range(path, 2, 5) == b"234" and files.read_range(path, 8, 99) == b"89"
    size, changed_s = files.entry_of(path)
    assert size == 10 and abs(time.time() - changed_s) < 60
    for nothing in (files.join(root, "deep"), files.join(root, "none")):
        with pytest.raises(FileNotFoundError):
            files.entry_of(nothing)
    with pytest.raises(FileNotFoundError):
        files.read_range(files.join(root, "none"), 0, 1)


def test_names_are_taken_as_they_are(root):
    """None of these is a chain of file systems or a pattern."""
    for name in ("a::b", "x::file:/etc/hosts", "[a]*?", "50%20"):
        files.write_bytes(files.join(root, name), name.encode())
        assert files.read_bytes(files.join(root, name)) == name.encode() and files.exists(files.join(root, name))
        fs, inner = files.filesystem(files.join(root, name))
        assert fs.cat_file(inner) == name.encode()


def test_nothing_there(root):
    assert files.listdir(files.join(root, "none")) == []
    assert files.tree(files.join(root, "none")) == []
    assert not files.exists(files.join(root, "none"))
    with pytest.raises(FileNotFoundError):
        files.read_bytes(files.join(root, "none"))
    with pytest.raises(FileNotFoundError):
        files.copy_tree(files.join(root, "none"), files.join(root, "other"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(root):
    path = files.join(root, "x")
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.staged(path) as local:
        local.write_bytes(b"half")
        raise RuntimeError
    assert files.read_bytes(path) == b"old"
    assert files.tree(root) == ["x"]
    assert not local.exists()


def test_copy_tree_and_digest(root, tmp_path):
    for name in ("x", "sub/y"):
        files.write_bytes(files.join(root, name), name.encode())
    copy = str(tmp_path / "copy")
    files.copy_tree(root, copy)
    assert files.tree(copy) == files.tree(root) == ["sub/y", "x"]
    assert files.sha256_file(files.join(copy, "x")) == files.sha256_file(files.join(root, "x"))
    assert (
        files.sha256_file(files.join(copy, "x")) == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    )


def test_remove_partial_takes_only_what_killed_writers_left(tmp_path):
    (tmp_path / ".x.arrow.123-abcd.partial").touch()
    (tmp_path / "x.arrow").touch()
    files.remove_partial(tmp_path)
    assert files.listdir(tmp_path) == ["x.arrow"]


def test_broken_json_names_the_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        files.read_json(path)


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        (("s3://b", "k"), "s3://b/k"),
        (("s3://b/", "/k/", "l"), "s3://b/k/l"),
        (("/a/", "b"), "/a/b"),
        (("a",), "a"),
        ((Path("a"), "b"), "a/b"),
    ],
)
def test_join(parts, path):
    assert files.join(*parts) == path


@pytest.mark.parametrize(
    ("path", "parent", "name"),
    [("s3://b/k/l/", "s3://b/k", "l"), ("/a/b", "/a", "b"), ("/a", "/", "a"), ("a", ".", "a")],
)
def test_parent_and_name(path, parent, name):
    assert (files.parent_of(path), files.name_of(path)) == (parent, name)


@pytest.mark.parametrize("do", [files.exists, files.read_bytes, lambda path: files.write_bytes(path, b"x")])
def test_an_object_store_out_of_reach_is_an_os_error(do, monkeypatch):
    """s3fs raises what its transport raises, which nothing that expects an OSError would see."""
    import s3fs

    named = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(ConnectionError, match="s3://nowhere/a/x: Could not connect to the endpoint"):
            do("s3://nowhere/a/x")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
