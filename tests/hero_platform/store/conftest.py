"""One small store for the tests of this folder, built on the suite's Ray."""

import pytest


@pytest.fixture(scope="session")
def ray_two(ray_session):
    """A Ray that runs two shard tasks at once: the suite's."""
    return ray_session


@pytest.fixture(scope="session")
def synthetic_source():
    """12 videos in three splits, all annotated."""
    from hero_platform.sources.synthetic import SyntheticSource

    return SyntheticSource(num_train=8, num_val=2, num_test=2, frame_dim=8)


@pytest.fixture(scope="session")
def synthetic_store(ray_two, synthetic_source, tmp_path_factory):
    """Path of `synthetic_source` as a store. Tests must not change it."""
    from hero_platform.store.build import build
    from hero_platform.store.tokens import TokenizerSpec

    out = str(tmp_path_factory.mktemp("store") / "synthetic")
    tokenizer = TokenizerSpec.of_words(synthetic_source.words())
    build(synthetic_source, out, corpus="synthetic", feature_set="f", tokenizer=tokenizer, progress=False)
    return out
