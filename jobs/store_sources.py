"""The sources that `jobs.build_store` knows: the flags of each, and the value they make."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from jobs.cli import add_common

if TYPE_CHECKING:
    from hero_model.config import TextIds
    from hero_platform.sources.base import Source
    from hero_platform.store.tokens import TokenizerSpec

    Chosen = tuple[Source, TokenizerSpec, str]  # the third: name of the feature set


@contextmanager
def chosen_source(own: argparse.Namespace) -> Iterator[Chosen]:
    """The source that the arguments name, its tokenizer and the name of its features, for the time of the block.

    Raises:
        ValueError: the flags do not fit together or the source cannot be read, in one sentence.
    """
    with ExitStack() as stack:
        yield _SOURCES[own.command](own, stack)


def add_sources(commands: Any) -> None:
    """A sub-command for each source."""
    lmdb = _command(commands, "lmdb", "HERO's and VALUE's released databases")
    lmdb.add_argument("--video-db", required=True, metavar="DIR", help="a data set's folder, or one LMDB folder in it")
    lmdb.add_argument("--txt-db", metavar="DIR", help="its subtitle database, e.g. tv_subtitles.db")
    lmdb.add_argument("--query-db", nargs="+", default=[], metavar="[SPLIT=]DIR", help="annotations, e.g. tvr_train.db")
    _add_texts(lmdb)

    npz = _command(commands, "npz", "one .npz of features per video")
    npz.add_argument("--features", nargs="+", required=True, metavar="DIR", help="folders whose features are joined")
    npz.add_argument("--arrays", nargs="+", default=[], metavar="NAME", help="arrays of a file to join, in order")
    _add_subtitles(npz)
    _add_texts(npz)

    conquer = _command(commands, "conquer", "CONQUER's features of TVR's clips")
    conquer.add_argument("path", metavar="PATH", help="tvr_feature_release: a .tar, .tar.gz or .zip, or it unpacked")
    conquer.add_argument(
        "--features", nargs="+", default=[], metavar="PART", help="what in it to join, in order (default: what fits)"
    )
    _add_subtitles(conquer)
    _add_texts(conquer)

    video = _command(commands, "video", "video files, encoded here")
    video.add_argument("path", metavar="DIR", help="folder or s3:// URL with films, at any depth")
    _add_films(video)
    _add_texts(video)

    synthetic = _command(commands, "synthetic", "a generated corpus with real structure, no download")
    synthetic.add_argument("--videos", type=_count, default=1000, metavar="N", help="over all splits (default 1000)")
    synthetic.add_argument("--val-videos", type=_count, metavar="N", help="of these (default a tenth)")
    synthetic.add_argument("--test-videos", type=_count, metavar="N", help="of these (default a fifth)")
    synthetic.add_argument("--frame-dim", type=_count, metavar="V", help="width of a frame feature")
    synthetic.add_argument("--vocab", type=_count, metavar="N", help="size of the vocabulary")
    synthetic.add_argument("--annotated-train", type=_count, metavar="N", help="train videos that carry annotations")
    synthetic.add_argument(
        "--scenes", type=_count, nargs=2, metavar=("LEAST", "MOST"), help="scenes of a video (default 4 6)"
    )
    synthetic.add_argument(
        "--scene-frames", type=_count, nargs=2, metavar=("LEAST", "MOST"), help="frames of a scene (default 3 7)"
    )
    synthetic.add_argument("--shuffle-subtitles", action="store_true", help="control: subtitles of other videos")
    synthetic.add_argument(
        "--hide", choices=["frames", "subtitles"], default="", help="frames are only noise, or subtitles have no words"
    )
    synthetic.add_argument("--corpus", default="synthetic", help="name of the data set (default synthetic)")


def _lmdb(own: argparse.Namespace, stack: ExitStack) -> Chosen:
    """HERO's and VALUE's databases, which hold token ids already."""
    from hero_platform import files
    from hero_platform.sources.lmdb import LmdbSource

    named = files.join(own.video_db, own.feature_set) if own.feature_set else ""
    is_database = files.exists(files.join(own.video_db, "data.mdb"))  # then --feature-set is no more than a name
    version = {} if is_database or not named else {"version": own.feature_set}
    source = LmdbSource(
        features=named if named and files.exists(named) else own.video_db,
        subtitles=own.txt_db,
        queries=tuple(own.query_db),
        splits=tuple(own.splits),
        interval_s=own.interval,
        **version,
    )
    folder = str(source.provenance()["features"]).rsplit("/", 1)[-1]
    name = own.feature_set if is_database and own.feature_set else folder.removesuffix("_compressed")
    return source, _tokenizer(own, source.text_ids), name


def _npz(own: argparse.Namespace, stack: ExitStack) -> Chosen:
    """One .npz of features per video, and subtitles as text."""
    from hero_model.config import TextIds
    from hero_platform import files
    from hero_platform.sources.npz import NpzSource, feature_arrays

    _check_subtitles(own)
    source = NpzSource(
        features=tuple(own.features),
        arrays=tuple(own.arrays) or feature_arrays(own.features[0]),
        subtitles=own.subtitles,
        splits=tuple(own.splits),
        interval_s=own.interval,
    )
    return source, _tokenizer(own, TextIds()), own.feature_set or files.name_of(own.features[0])


def _conquer(own: argparse.Namespace, stack: ExitStack) -> Chosen:
    """CONQUER's features of TVR's clips, in an archive or unpacked."""
    from hero_model.config import TextIds
    from hero_platform.sources.archive import unpacked
    from hero_platform.sources.conquer import VERSION, ConquerSource, find_parts

    _check_subtitles(own)
    folder = stack.enter_context(unpacked(own.path))
    version = own.feature_set or VERSION
    try:
        parts = find_parts(folder, own.features, version, own.interval)
    except ValueError as error:
        raise ValueError(f"{own.path}: {error}") from error
    print(f"found    {' + '.join(map(str, parts))}")
    source = ConquerSource(folder, parts, own.subtitles, tuple(own.splits), interval_s=own.interval)
    return source, _tokenizer(own, TextIds()), own.feature_set or f"{VERSION}_{own.interval:g}"


def _synthetic(own: argparse.Namespace, stack: ExitStack) -> Chosen:
    """The generated corpus."""
    from hero_platform.sources.synthetic import SyntheticSource
    from hero_platform.store.tokens import TokenizerSpec

    num_val = own.videos // 10 if own.val_videos is None else own.val_videos
    num_test = own.videos // 5 if own.test_videos is None else own.test_videos
    if num_val + num_test > own.videos:
        raise ValueError(f"--videos {own.videos} is less than --val-videos {num_val} plus --test-videos {num_test}")
    chosen = {"frame_dim": own.frame_dim, "vocab_size": own.vocab, "annotated_train": own.annotated_train}
    ranges = {"num_scenes": own.scenes, "scene_frames": own.scene_frames}
    chosen |= {name: given and tuple(given) for name, given in ranges.items()}
    source = SyntheticSource(
        num_train=own.videos - num_val - num_test,
        num_val=num_val,
        num_test=num_test,
        seed=own.seed or 0,
        interval_s=own.interval,
        shuffle_subtitles=own.shuffle_subtitles,
        hide=own.hide,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    return source, TokenizerSpec.of_words(source.words()), own.feature_set or "synthetic"


def _check_subtitles(own: argparse.Namespace) -> None:
    if own.subtitles and not own.tokenizer:
        raise ValueError("subtitles need --tokenizer DIR, a folder with RoBERTa's vocabulary")


def _tokenizer(own: argparse.Namespace, text_ids: TextIds) -> TokenizerSpec:
    """RoBERTa's, or none but its special ids."""
    from hero_platform.store.tokens import TokenizerSpec

    return TokenizerSpec.roberta(own.tokenizer) if own.tokenizer else TokenizerSpec.ids_only(text_ids)


_SOURCES = {"lmdb": _lmdb, "npz": _npz, "conquer": _conquer, "synthetic": _synthetic}


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """One source, with the flags that every build has."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"Build a store from {text}.")
    command.add_argument("--out", metavar="PATH", help="folder or s3:// URL (default HERO_HOME/stores/CORPUS/NAME)")
    command.add_argument("--feature-set", metavar="NAME", help="name of the visual features; of databases, the version")
    command.add_argument(
        "--interval", type=float, default=1.5, metavar="S", help="seconds between frames (default 1.5)"
    )
    command.add_argument("--keep-float32", action="store_true", help="store features as float32, not float16")
    command.add_argument("--shard-mb", type=float, default=256, metavar="MB", help="size of a shard (default 256)")
    command.add_argument("--workers", type=_positive, default=2, metavar="N", help="tasks at once (default 2)")
    add_common(command, name="folder of the store under stores/CORPUS (default: the feature set)")
    return command


def _add_texts(command: argparse.ArgumentParser) -> None:
    """Flags of the sources that read foreign files."""
    command.add_argument(
        "--splits", nargs="+", default=[], metavar="[SPLIT=]PATH", help="JSON lists of ids, or databases that list them"
    )
    command.add_argument("--tokenizer", metavar="DIR", help="RoBERTa vocabulary, for texts without token ids")
    command.add_argument("--corpus", required=True, help="name of the data set")


def _add_subtitles(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--subtitles", metavar="PATH", help="a .jsonl file, or a folder with one .srt or .vtt per video"
    )


def _add_films(command: argparse.ArgumentParser) -> None:
    """Flags of the source that decodes films."""
    command.add_argument(
        "--encoder", nargs="+", default=[], metavar="NAME",
        help="efficientnet-lite0 (the default), or vision models of transformers by folder or hub name; several are "
        "joined in this order",
    )  # fmt: skip
    command.add_argument(
        "--clip-seconds", type=_seconds, default=60.0, metavar="S", help="cut films into clips (default 60, 0: never)"
    )
    command.add_argument(
        "--language", nargs="+", default=["en", "eng"], metavar="TAG", help="subtitles to take (default en eng)"
    )
    command.add_argument("--speech", default="", metavar="DIR", help="speech model of transformers, without subtitles")
    command.add_argument("--ids", choices=["name", "path"], default="name", help="what a film is called by")
    command.add_argument(
        "--time-limit", type=_seconds, default=3600.0, metavar="S", help="waiting for one film's decoder (default 3600)"
    )
    command.add_argument(
        "--encoder-workers", type=_positive, default=1, metavar="N", help="encoders at once (default 1)"
    )
    command.add_argument(
        "--encoder-gpus", type=_seconds, default=0.0, metavar="X", help="GPUs of each, such as 0.5 (default 0: a core)"
    )


def _seconds(text: str) -> float:
    """Parse a number that is not negative, nor infinite."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is negative or no number")
    return value


def _count(text: str) -> int:
    """Parse an int that is not negative."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _positive(text: str) -> int:
    """Parse an int of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
