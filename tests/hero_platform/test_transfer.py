import pytest
import s3fs

from hero_platform import files, transfer


@pytest.fixture
def far(monkeypatch):
    """A file system whose server is not there."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:8",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield files.filesystem("s3://bucket/key")[0]
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_address_of_s3_alone_goes_before_that_of_aws(far):
    assert far.s3.meta.endpoint_url == "http://127.0.0.1:9"


@pytest.mark.parametrize(("num_bytes", "part"), [(1, 16 << 20), (1 << 40, 109_951_163)])
def test_no_upload_has_more_parts_than_s3_takes(far, num_bytes, part):
    assert transfer._in_parts(far, num_bytes) == {"chunksize": part, "max_concurrency": transfer.PARALLEL}
    assert num_bytes <= part * transfer.MOST_PARTS
