"""What is said in a film, by a speech model of `transformers` from a local folder (Whisper and its kind).

The model is asked for times; its segments become subtitles. Films that have subtitles are never listened to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hero_platform import files
from hero_platform.video import decoder
from hero_platform.video.decoder import BadFilm
from hero_platform.video.extract import Job, Pools, fetched
from hero_platform.video.films import Film
from hero_platform.video.work import Cue

if TYPE_CHECKING:
    import ray.data

_WINDOW_S = 30.0  # what the model hears at once


class Listener:
    """A loaded speech model."""

    def __init__(self, folder: str, device: str) -> None:
        """Load the model in a local folder.

        Raises:
            ValueError: it cannot be loaded.
        """
        from transformers import pipeline
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self._hear = pipeline(
                "automatic-speech-recognition",
                model=folder,
                device=device,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:  # of many kinds, all of which mean this
            raise ValueError(f"{folder}: its speech model cannot be loaded: {str(error).splitlines()[0]}") from error

    def cues(self, sound: np.ndarray, rate: int) -> list[Cue]:
        """Segments of what is said in `sound` (int16, one channel), in seconds from its start."""
        cues: list[Cue] = []
        window = int(_WINDOW_S * rate)
        for start in range(0, len(sound), window):
            part = sound[start : start + window].astype(np.float32) / 32768
            said = self._hear({"raw": part, "sampling_rate": rate}, return_timestamps=True)
            cues += _segments(said["chunks"], start / rate, len(part) / rate)
        return cues


def _segments(chunks: Sequence[dict[str, Any]], offset_s: float, length_s: float) -> list[Cue]:
    """A window's segments that have words and a length; one that is not ended lasts to the window's end."""
    cues: list[Cue] = []
    for chunk in chunks:
        start_s, end_s = chunk["timestamp"]
        start_s, end_s = float(start_s or 0.0), float(length_s if end_s is None else min(end_s, length_s))
        text = " ".join(chunk["text"].split())
        if text and start_s < end_s:
            cues.append((round(offset_s + start_s, 3), round(offset_s + end_s, 3), text))
    return cues


def describe_speech(folder: str) -> dict[str, str]:
    """What the manifest says of the model: its name, and the digest of its weights.

    Raises:
        ValueError: the folder holds no model.
    """
    names = [name for name in files.listdir(folder) if name.endswith(".safetensors")]
    if not names:
        raise ValueError(f"{folder} holds no speech model of transformers (*.safetensors)")
    return {"name": files.name_of(folder), "weights_sha256": files.sha256_file(files.join(folder, sorted(names)[0]))}


def listen(films: Sequence[Film], folder: str, job: Job, pools: Pools) -> int:
    """Transcribe films in a pool of actors; Ray is running. Returns how many have speech.

    Raises:
        ValueError: the model cannot be loaded, or a film cannot be fetched.
    """
    left = [film for film in films if job.work.heard(film) is None]
    for row in _dataset(left, folder, job, pools).iter_rows() if left else ():
        if row["error"]:
            raise ValueError(row["error"])
    return sum(bool(job.work.heard(film)) for film in films)


def _dataset(films: Sequence[Film], folder: str, job: Job, pools: Pools) -> ray.data.Dataset:
    import ray.data

    items = [{"film": json.dumps(asdict(film))} for film in films]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ListenTask,
        fn_constructor_args=(folder, job, pools.device),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(pools.encoders, len(items)), max_tasks_in_flight_per_actor=1),
        num_cpus=0 if pools.gpus_per_encoder else 1,
        num_gpus=pools.gpus_per_encoder,
    )


class ListenTask:
    """Transcribes films inside a Ray actor, which loads the model once."""

    def __init__(self, folder: str, job: Job, device: str) -> None:
        self._folder, self._job, self._device = folder, job, device

    @cached_property
    def _listener(self) -> Listener:
        """Loaded with the first film, so that what is wrong with it is said as what is wrong with a film."""
        import torch

        if self._device == "cpu":
            torch.set_num_threads(1)
        return Listener(self._folder, self._device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Keep what is said in the one film of `batch`; a film without sound says nothing."""
        from hero_platform.video.views import SOUND_RATE

        film = Film(**json.loads(batch.column("film")[0].as_py()))
        error = ""
        try:
            with fetched(self._job.root, film) as path:
                blocks = list(decoder.sound(path, self._job.limits))
            heard = self._listener.cues(np.concatenate(blocks), SOUND_RATE) if blocks else []
            self._job.work.write_heard(film, heard)
        except BadFilm:
            self._job.work.write_heard(film, [])
        except (OSError, ValueError, RuntimeError) as problem:  # also a model that gives no times
            error = f"{film.file}: {' '.join(str(problem).split())}"
        return pa.table({"error": [error]})
