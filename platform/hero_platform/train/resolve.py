"""From a recipe with flags to a run that can start: stores opened, sizes taken from them, identity checked (D1)."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from hero_model.config import HeroConfig, base, debug
from hero_model.multitask import MultiTaskHero
from hero_model.tasks import Task
from hero_platform import config_io, files, home
from hero_platform.config import OptimConfig, RunConfig, ScheduleConfig, StoreRef, differences, identity
from hero_platform.feed.loader import ExampleReader, mixture_of, open_stores
from hero_platform.store.media import Encoder, check_learnt, encoders_of_run
from hero_platform.tracking.journal import FILE as JOURNAL_FILE
from hero_platform.train import snapshot
from hero_platform.train.records import starts_of
from hero_platform.train.summary import unique_tasks

logger = logging.getLogger(__name__)

DEBUG_TOTAL = 200  # updates of the debug schedule: 20 of them must move the loss


def with_model(config: RunConfig, size: str) -> RunConfig:
    """Choose a model size; `debug` also selects an optimiser and schedule with which 20 steps move the loss."""
    if size == "base":
        return replace(config, model=base())
    if size != "debug":
        raise ValueError(f"--model is debug or base, not {size!r}")
    return replace(
        config,
        model=debug(),
        optim=OptimConfig(lr=2e-3),
        schedule=ScheduleConfig(total=DEBUG_TOTAL, warmup=2),
        steps=min(config.steps, DEBUG_TOTAL),
        scale=replace(config.scale, threads_per_worker=1),  # too little work to share among threads
    )


def with_batch(config: RunConfig, batch: int) -> RunConfig:
    """Set the batch; pool and nce_pool shrink to divisors that still let four workers share each pool."""
    if batch < 1:
        raise ValueError(f"--batch must be at least 1, not {batch}")
    pool = _divisor(batch, config.pool)
    nce_pool = _divisor(pool, min(config.nce_pool, max(pool // 4, 1)))
    return replace(config, batch=batch, pool=pool, nce_pool=nce_pool)


def _divisor(number: int, most: int) -> int:
    """Largest divisor of `number` that is at most `most`."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def with_stores(config: RunConfig, pairs: Sequence[str]) -> RunConfig:
    """Apply `--store CORPUS=PATH`; a corpus without one is looked up under the home folder.

    Raises:
        ValueError: a malformed pair, or a corpus no entry of the mixture uses.
    """
    corpora = list(dict.fromkeys(entry.corpus for entry in config.mixture))
    paths = {ref.corpus: ref.path for ref in config.stores}
    for pair in pairs:
        corpus, equals, path = pair.partition("=")
        if not equals or not corpus or not path:
            raise ValueError(f"--store takes CORPUS=PATH, not {pair!r}")
        if corpus not in corpora:
            raise ValueError(
                f"--store {pair}: recipe {config.recipe} reads no corpus {corpus!r} but {', '.join(corpora)}"
            )
        paths[corpus] = path if files.is_remote(path) else os.path.abspath(path)
    for corpus in corpora:
        if corpus not in paths:
            paths[corpus] = home.store_of(corpus) or ""
    return replace(config, stores=tuple(StoreRef(corpus, paths[corpus]) for corpus in corpora))


def resolve(config: RunConfig) -> RunConfig:
    """Fill in what the stores and the initial weights decide: digests, frame width, vocabulary, special ids.

    Raises:
        ValueError: a name cannot be one, a store is missing, two stores of the run do not fit together, a batch
            is larger than a corpus, or the mixture or the model cannot be.
    """
    _check_names(config)
    refs, widths, texts, encoders = [], {}, {}, {}
    stores = open_stores(config)
    for ref in config.stores:
        store = stores[ref.corpus]
        tables = {
            (e.task.annotations, e.split) for e in config.mixture if e.corpus == ref.corpus and e.task.annotations
        }
        annotations = "+".join(store.annotations(kind, split).digest for kind, split in sorted(tables))
        refs.append(replace(ref, digest=store.digest, annotations=annotations))
        widths[ref.corpus], texts[ref.corpus] = store.frame_dim, store.text_ids
        encoders[ref.corpus] = store.encoders
    for what, values in (("frame features of width", widths), ("a tokenizer with special ids", texts)):
        if len(set(values.values())) > 1:
            listed = "; ".join(f"{corpus} has {what} {value}" for corpus, value in values.items())
            raise ValueError(f"the stores of one run must agree: {listed}")
    made_by = _check_encoders(encoders)
    for entry in config.mixture:
        examples = len(ExampleReader(stores[entry.corpus], entry.task, entry.corpus, entry.split, training=True))
        if config.batch > examples:
            raise ValueError(
                f"batch {config.batch} is larger than the {examples} examples of {entry.key} in split {entry.split!r}: "
                f"use --batch {examples} or less"
            )
    text = next(iter(texts.values()))
    model: HeroConfig = replace(
        config.model, frame_dim=next(iter(widths.values())), vocab_size=-(-text.vocab_size // 8) * 8
    )
    mixture = tuple(replace(e, task=replace(e.task, flat=model.flat)) for e in config.mixture)
    resolved = replace(
        config,
        name=config.name or config.recipe,
        stores=tuple(refs),
        mixture=mixture,
        model=model,
        text=text,
        encoders=made_by,
    )
    mixture_of(resolved)
    module = _shaped(resolved.model, tuple(unique_tasks(resolved)))
    if not resolved.init_from:
        return resolved
    return _with_start(replace(resolved, init_from=_placed(resolved.init_from)), module)


def _with_start(config: RunConfig, module: MultiTaskHero) -> RunConfig:
    """Fill in what the initial weights decide: their digest, and what made the features they know if no store says.

    Raises:
        ValueError: they cannot be had, do not fit the model, or know features of other encoders.
    """
    if old := _begun_from(config):
        return replace(config, init_digest=old.init_digest, encoders=config.encoders or old.encoders)
    folder = weights_of(config.init_from)
    _same_shape(config.model, folder)
    _shared(module, snapshot.shapes(folder), folder)
    learnt = encoders_of_run(files.read_json(files.join(folder, "config.json")))
    check_learnt(folder, learnt, " and ".join(ref.path for ref in config.stores), config.encoders)
    digest = files.sha256_file(files.join(folder, "model.safetensors"))
    return replace(config, init_digest=digest, encoders=config.encoders or learnt)


def _check_encoders(encoders: Mapping[str, Sequence[Encoder]]) -> tuple[Encoder, ...]:
    """What made the stores of a run, as far as they say so; refuse several: widths may agree by chance."""
    known = {corpus: tuple(made_by) for corpus, made_by in encoders.items() if made_by}
    if len({tuple(encoder.identity for encoder in made_by) for made_by in known.values()}) > 1:
        listed = "; ".join(f"{corpus} by {' + '.join(map(str, made_by))}" for corpus, made_by in known.items())
        raise ValueError(f"the stores of one run must be made by the same encoders: {listed}")
    return next(iter(known.values()), ())


def _check_names(config: RunConfig) -> None:
    """Refuse names that would lead out of the folders they become part of."""
    home.check_name("run", config.name or config.recipe)
    home.check_name("experiment", config.tracking.experiment)
    if config.tracking.sweep:
        home.check_name("sweep", config.tracking.sweep)
    for entry in config.mixture:
        home.check_name("corpus", entry.corpus)
        home.check_name("split", entry.split)


@functools.lru_cache(maxsize=1)
def _shaped(model: HeroConfig, tasks: tuple[Task, ...]) -> MultiTaskHero:
    """A module without memory; kept, as the trials of a sweep mostly share it and it takes as long as all else."""
    with torch.device("meta"):
        return MultiTaskHero(model, tasks)


def _begun_from(config: RunConfig) -> RunConfig | None:
    """The run as it began from these weights, once it has a checkpoint: then they may change, or be gone."""
    folder = home.run_dir(config.name)
    path = files.join(folder, "config.json")
    if not files.exists(path) or not snapshot.checkpoints(files.join(folder, "checkpoints")):
        return None
    old = config_io.from_json(files.read_bytes(path).decode())
    return old if old.init_from == config.init_from else None


def _placed(name: str) -> str:
    """A run by its name, a local folder by its absolute path: workers may run in another folder."""
    is_run = home.is_name(name) and (snapshot.checkpoints(home.checkpoints_dir(name)) or not os.path.isdir(name))
    return name if is_run or files.is_remote(name) else os.path.abspath(name)


def weights_of(name: str) -> str:
    """Folder of the checkpoint that `name` stands for.

    It is a checkpoint's folder, or stands for the best, else the last, of several: a run's name, a run's folder, its
    `checkpoints`, or what `jobs.convert` wrote. A run's name means the run, though a folder of checkpoints here has it.

    Raises:
        ValueError: there is none.
    """
    place = name if files.is_remote(name) else os.path.abspath(name)
    if files.exists(files.join(place, "model.safetensors")):
        return place
    roots = [place, files.join(place, "checkpoints")]
    if home.is_name(name):
        roots.insert(0, home.checkpoints_dir(name))
    for root in roots:
        if snapshot.checkpoints(root):
            return best_or_last(root)
    raise ValueError(
        f"init_from {name!r} is neither a run with a checkpoint under {home.root()} nor a folder of checkpoints: "
        "give a run's name, a step_* folder, or a folder that holds such"
    )


def best_or_last(root: str) -> str:
    """Folder of the best checkpoint under `root`, of the last where none has a score. Raises like `choose`."""
    return snapshot.choose(root, "best" if files.exists(files.join(root, snapshot.BEST)) else "last")


def check_same_run(config: RunConfig, folder: str) -> bool:
    """Whether the run in `folder` exists already, with the same identity.

    A run without any result may get other initial weights, as after a start that found them damaged: it does not exist
    yet, and its config is to be written anew.

    Raises:
        ValueError: it is another experiment: the identity fields that differ are named.
    """
    old, whole = _config_of(folder)
    if old is None:
        return False
    changed = differences(identity(old), identity(config))
    if (
        changed
        and not _has_begun(folder)
        and identity(replace(old, init_digest=config.init_digest)) == identity(config)
    ):
        return False
    if changed:
        raise ValueError(
            f"run {config.name!r} already exists with other settings: {'; '.join(changed)}. "
            "Choose another --name, or repeat those settings to resume it"
        )
    return whole


def _config_of(folder: str) -> tuple[RunConfig | None, bool]:
    """The config of a run, and whether its `config.json` has it; where that is lost, its newest start does."""
    path = files.join(folder, "config.json")
    try:
        return config_io.from_json(files.read_bytes(path).decode()), True
    except FileNotFoundError:
        pass
    except ValueError as error:
        logger.error("%s is damaged and is written anew: %s", path, error)
    starts = starts_of(folder)
    if not starts and _has_begun(folder):
        raise ValueError(f"{path} is missing or damaged, and so is starts/: nobody knows what run this is")
    return (starts[-1].config if starts else None), False


def _has_begun(folder: str) -> bool:
    """Whether a run has anything that its initial weights decided: a checkpoint, or a line in its journal."""
    journal = files.join(folder, JOURNAL_FILE)
    recorded = files.exists(journal) and files.size_of(journal) > 0
    return recorded or bool(snapshot.checkpoints(files.join(folder, "checkpoints")))


def load_weights(module: MultiTaskHero, config: RunConfig) -> str:
    """Copy the weights `init_from` names into `module`; heads that only one side has keep their initial values.

    Returns:
        One line that says what was loaded and what was not.

    Raises:
        ValueError: nothing fits, or a tensor has another shape.
    """
    folder = weights_of(config.init_from)
    source = module.adopt(snapshot.load(folder).model)
    own = module.state_dict()
    shared = _shared(module, {name: tuple(tensor.shape) for name, tensor in source.items()}, folder)
    module.load_state_dict({name: source[name] for name in shared}, strict=False)
    fresh, unused = sorted(set(own) - set(shared)), sorted(set(source) - set(own))
    return f"weights from {folder}: {len(shared)} tensors; new: {_heads(fresh)}; not used: {_heads(unused)}"


def _same_shape(model: HeroConfig, folder: str) -> None:
    """Refuse weights of a flat model for a hierarchical one and the other way round: layers would change their work."""
    config = files.read_json(files.join(folder, "config.json"))
    theirs = bool(config.get("model", {}).get("flat", False))
    if theirs != model.flat:
        names = {False: "hierarchical", True: "flat"}
        raise ValueError(
            f"{folder} holds a {names[theirs]} model and this run's is {names[model.flat]}: "
            f"add --model.{'flat' if theirs else 'no-flat'} or start from other weights"
        )


def _shared(module: MultiTaskHero, source: Mapping[str, tuple[int, ...]], folder: str) -> list[str]:
    """Names of the weights that `module` takes from a checkpoint with these shapes, or ValueError: see above."""
    own = module.state_dict()
    shared = [name for name in source if name in own]
    if not shared:
        raise ValueError(f"{folder} holds no weight of this model; its first names are {sorted(source)[:3]}")
    for name in shared:
        if source[name] != tuple(own[name].shape):
            raise ValueError(
                f"{folder}: {name} has shape {source[name]} there and {tuple(own[name].shape)} in this run; "
                "use the same --model and a store of the same features and tokenizer"
            )
    return shared


def _heads(names: Sequence[str]) -> str:
    """Names cut to their module, each once."""
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name in names})) or "none"
