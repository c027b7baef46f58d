"""What a run will do, before it does it: the facts `--dry-run` prints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hero_model.multitask import MultiTaskHero
from hero_platform import config_io
from hero_platform.config import RunConfig
from hero_platform.feed.loader import ExampleReader, mixture_of
from hero_platform.store.reader import FeatureStore
from hero_platform.train.step import DTYPES

ADAM_COPIES = 4  # weights, gradients and two moments
ACTIVATION_FACTOR = 34  # values kept per row, layer and hidden unit of a post-norm layer, attention scores left out


def unique_tasks(config: RunConfig) -> list[Any]:
    """The tasks of the mixture, each kind once.

    Raises:
        ValueError: two entries run the same kind with different settings.
    """
    tasks: dict[str, Any] = {}
    for entry in config.mixture:
        if tasks.setdefault(entry.task.kind, entry.task) != entry.task:
            raise ValueError(f"two mixture entries run {entry.task.kind} with different settings; make them equal")
    return list(tasks.values())


def summary(config: RunConfig) -> dict[str, Any]:
    """Sizes, rates and estimates of a resolved run. Opens the stores' manifests and indexes, reads no features."""
    with torch.device("meta"):
        module = MultiTaskHero(config.model, unique_tasks(config))
    parameters = sum(p.numel() for p in module.parameters())
    schedule = mixture_of(config)
    picks = np.bincount([schedule.entry(s) for s in range(config.steps)], minlength=len(config.mixture))
    entries, rows, frame_bytes = [], 0.0, 0.0
    for entry, steps in zip(config.mixture, picks.tolist(), strict=True):
        store = FeatureStore.open(config.store(entry.corpus).path)
        examples = len(ExampleReader(store, entry.task, entry.corpus, entry.split, training=True))
        index, videos = store.index, store.rows_of(entry.split)
        frames = float(index.num_frames[videos].mean())
        tokens = float(index.num_tokens[videos].mean() + index.num_segments[videos].mean())
        entries.append(
            {
                "entry": entry.key,
                "split": entry.split,
                "examples": examples,
                "steps": steps,
                "epochs": round(steps * config.batch / examples, 2),
                "frames_per_video": round(frames, 1),
                "text_tokens_per_video": round(tokens, 1),
            }
        )
        rows += steps / config.steps * (frames + tokens)
        frame_bytes += steps / config.steps * frames * store.frame_dim * np.dtype(store.manifest.dtype).itemsize
    width = torch.finfo(DTYPES[config.precision]).bits // 8
    workers = max(config.scale.num_workers, 1)
    resident = config.scale.micro_batch or -(-config.pool // workers)
    layers = config.model.cross.num_layers + config.model.temporal.num_layers
    activations = resident * rows * config.model.hidden_size * layers * ACTIVATION_FACTOR * width
    loaded = -(-config.batch // workers) * frame_bytes * (1 + max(config.scale.prefetch, 1))  # this step and the next
    return {
        "name": config.name,
        "recipe": config.recipe,
        "config": config_io.to_dict(config),
        "fingerprint": config_io.fingerprint(config),
        "parameters": parameters,
        "videos_per_step": config.batch,
        "tokens_per_step": round(rows * config.batch),
        "mixture": entries,
        "workers": config.scale.num_workers,
        "micro_batch_videos": resident,
        "memory_bytes_per_worker": round(parameters * width * ADAM_COPIES + activations + loaded),
        "feature_bytes_read": round(frame_bytes * config.batch * config.steps),
        "checkpoint_bytes": parameters * width * (ADAM_COPIES - 1),
    }


def summary_text(config: RunConfig, facts: dict[str, Any]) -> str:
    """`summary` for people: the resolved config, then the numbers."""
    gb = 1e9
    lines = [
        config_io.to_json(config),
        "",
        f"run {facts['name']} (recipe {facts['recipe']}, fingerprint {facts['fingerprint'][:12]})",
        f"  parameters        {facts['parameters']:,}",
        f"  a step            {facts['videos_per_step']:,} videos, about {facts['tokens_per_step']:,} tokens "
        "(frames and text)",
        f"  workers           {facts['workers']} (0: this process), {facts['micro_batch_videos']} videos in memory",
        f"  memory estimate   {facts['memory_bytes_per_worker'] / gb:.2f} GB a worker",
        f"  features read     {facts['feature_bytes_read'] / gb:.2f} GB in {config.steps:,} steps",
        f"  a checkpoint      {facts['checkpoint_bytes'] / gb:.2f} GB",
    ]
    lines += [
        f"  {e['entry']:<24}{e['steps']:,} steps, {e['epochs']:g} epochs of {e['examples']:,} examples ({e['split']})"
        for e in facts["mixture"]
    ]
    return "\n".join(lines)
