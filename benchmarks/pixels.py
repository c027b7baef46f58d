"""From pixels to an answer, against ready-made features: moment retrieval on the same stories, drawn as films.

One synthetic corpus, and for each system the same recipe, steps, batch and seeds, from scratch:

- given features: the corpus' own frame features (`build_store synthetic`);
- from pixels: its films, decoded and encoded by EfficientNet-Lite0 (`build_store video`), subtitles from the SRT
  files beside them;
- subtitles only: given features that are noise, so that what the frames add to the subtitles can be told;
- chance: answers drawn without looking, exact.

All are asked with the same file of moments (`build_store annotations`). No checkpoint is chosen: the last one
answers. Everything but the drawing of films is an ordinary command; each is printed.

python -m benchmarks.pixels [--corpus-seed 0] [--seeds 0 1] [--home outputs/pixels]

The same command goes on where it stopped, if `--home` keeps the runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning import search_chance
from benchmarks.learning_pool import Job, run_all
from benchmarks.results import record, spread
from hero_platform import files, home
from hero_platform.report.table import aligned, title
from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.sources.synthetic_films import write_films, write_texts
from hero_platform.store.reader import FeatureStore
from jobs import build_store
from jobs.cli import program_of
from jobs.store_sources import chosen_source

GIVEN, PIXELS, SUBTITLES, CHANCE = "given features", "from pixels", "subtitles only", "chance"
SYSTEMS = (GIVEN, PIXELS, SUBTITLES)
METRICS = ("vcmr_r1_iou05", "vcmr_r1_iou07", "vr_r1")
SPLIT = "val"
SHAPE = "--scenes 3 3 --scene-frames 3 4".split()  # short videos: more questions for each picture that is encoded


def main() -> None:
    """Draw, build, train, evaluate; print the table and record a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus-seed", type=int, default=0, help="of the stories")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the trainings")
    parser.add_argument("--train", type=int, default=240, metavar="N", help="videos to train on")
    parser.add_argument("--val", type=int, default=60, metavar="N", help="videos to search")
    parser.add_argument("--steps", type=int, default=600, metavar="N", help="of each training")
    parser.add_argument("--home", help="keep the runs here, and go on with them (default: a temporary folder)")
    parser.add_argument("--no-record", action="store_true", help="print the row and do not keep it")
    own = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = own.home or stack.enter_context(tempfile.TemporaryDirectory(prefix="hero-pixels-"))
        os.environ["HERO_HOME"] = os.path.abspath(place)
        _draw(own)
        stores, trained = _stores(own), _trainings(own)
        for job in (*stores, *trained):
            print("\n".join(f"$ {program_of(f'jobs.{name}')} {' '.join(words)}" for name, *words in job.commands))
        marks = Path(home.root()) / "marks"
        done = run_all(stores, str(marks), workers=1, tell=_tell)  # Ray has workers of its own
        done |= run_all(trained, str(marks), workers=2, tell=_tell)
        table = _table(own.seeds)
        cells = [[system, *(spread(found[metric]) for metric in METRICS)] for system, found in table.items()]
        print("\n" + aligned([["", *(title(metric) for metric in METRICS)], *cells]))
        recalls = "; ".join(
            f"{system} " + ", ".join(f"{title(metric)} {value}" for metric, value in zip(METRICS, values, strict=True))
            for system, *values in cells
        )
        encoding, training = done[_store_job(PIXELS)]["seconds"], done[_run(PIXELS, own.seeds[0])]["seconds"]
        record(
            f"from pixels against given features: {own.train} train and {own.val} val videos of 10.5 frames, 3 queries "
            f"each, {own.steps} steps from scratch, {len(own.seeds)} seeds",
            f"{recalls} (percent of {SPLIT}; median, min-max of seeds); films to store {encoding:.0f} s, a training "
            f"and its evaluation {training:.0f} s",
            keep=not own.no_record,
        )


def _draw(own: argparse.Namespace) -> None:
    """The films of the corpus and the texts that belong to them, unless they are there."""
    if _place("words.txt").exists():
        return
    began = time.monotonic()
    with chosen_source(build_store.parser().parse_args(_synthetic(own))) as (source, _, _):
        assert isinstance(source, SyntheticSource)
        films = write_films(_place("films"), source)
        write_texts(_place(""), source)  # last: says that all films are there
    _tell(f"{len(films)} films drawn in {time.monotonic() - began:.0f} s")


def _synthetic(own: argparse.Namespace) -> list[str]:
    """The corpus, as `build_store` takes it."""
    sizes = {"--videos": own.train + own.val, "--val-videos": own.val, "--test-videos": 0}
    sizes |= {"--annotated-train": own.train, "--seed": own.corpus_seed}
    return ["synthetic", *(str(word) for pair in sizes.items() for word in pair), *SHAPE]


def _stores(own: argparse.Namespace) -> list[Job]:
    """A store for each system, all with the same questions."""
    splits = ("train", SPLIT)
    listed = [f"{split}={_place(split)}.json" for split in splits]
    films = ["video", str(_place("films")), "--corpus", "synthetic", "--tokenizer", str(_place("words.txt"))]
    sources = {
        GIVEN: _synthetic(own),
        PIXELS: [*films, "--splits", *listed, "--clip-seconds", "0"],
        SUBTITLES: [*_synthetic(own), "--hide", "frames"],
    }
    asked = ("build_store", "annotations", "--corpus", "tvr")
    return [
        Job(
            _store_job(system),
            (
                ("build_store", *words, "--out", _store(system)),
                *((*asked, "--split", split, "--store", _store(system), f"{_place(split)}.jsonl") for split in splits),
            ),
        )
        for system, words in sources.items()
    ]


def _trainings(own: argparse.Namespace) -> list[Job]:
    """A fine-tuning from scratch and its evaluation, for each system and seed."""
    schedule = ["--steps", str(own.steps), "--schedule.total", str(own.steps)]
    quiet = "--tracking.kind none --evaluation.every 0".split()
    jobs = []
    for seed in own.seeds:
        for system in SYSTEMS:
            run, store = _run(system, seed), _store(system)
            train = ("train", "finetune_synthetic", "--name", run, "--store", f"synthetic={store}")
            asked = ("evaluate", "--run", run, "--corpus", "synthetic", "--split", SPLIT, "--store", store)
            jobs.append(
                Job(run, ((*train, "--seed", str(seed), *schedule, *quiet), (*asked, "--json", str(_result(run)))))
            )
    return jobs


def _table(seeds: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """System -> metric -> a value a seed, in percent; chance has one."""
    found = {system: [files.read_json(_result(_run(system, seed)))["metrics"] for seed in seeds] for system in SYSTEMS}
    found[CHANCE] = [search_chance(FeatureStore.open(_store(GIVEN)), SPLIT)]
    return {
        system: {metric: [values[metric] for values in all_seeds] for metric in METRICS}
        for system, all_seeds in found.items()
    }


def _run(system: str, seed: int) -> str:
    return f"{system.replace(' ', '-')}-{seed}"


def _store(system: str) -> str:
    return home.store_dir("synthetic", system.replace(" ", "-"))


def _store_job(system: str) -> str:
    return f"store-{system.replace(' ', '-')}"


def _place(name: str) -> Path:
    return Path(home.root()) / "drawn" / name


def _result(run: str) -> Path:
    return Path(home.root()) / f"{run}.json"


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
