"""What `benchmarks.learning` trains: for each seed a corpus, pre-trainings and fine-tunings, as jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.learning_pool import Job
from hero_platform import files, home

CORPUS = [
    *"--videos 1300 --val-videos 100 --test-videos 200 --annotated-train 1000".split(),
    *"--scenes 3 4 --scene-frames 2 5".split(),  # short videos: a question reads its own five times
]
SPLIT = "test"
HIDDEN = {"frames only": "subtitles", "subtitles only": "frames"}  # system -> what it does not see
STAGES = ("mlm", "mfm", "fom", "vsm")  # in the order of pretrain_synthetic's mixture, and of the paper's table


@dataclass(frozen=True)
class Kind:
    """One kind of task: its recipe, and the metric that is compared."""

    recipe: str
    metric: str


KINDS = {
    "moment_retrieval": Kind("finetune_synthetic", "vcmr_r1_iou05"),
    "video_retrieval": Kind("finetune_synthetic_retrieval", "vr_r1"),
    "video_qa": Kind("finetune_synthetic_qa", "accuracy"),
    "entailment": Kind("finetune_synthetic_entailment", "accuracy"),
    "captioning": Kind("finetune_synthetic_captions", "cider_d"),
}
STUDIED = ("moment_retrieval",)  # the paper takes TVR and TVQA; questions would double the time

PRETRAINED, SCRATCH = "pre-trained", "from scratch"
SYSTEMS = (PRETRAINED, SCRATCH, *HIDDEN)
ABLATION = {  # row -> how many of STAGES
    "no pre-training": 0,
    "MLM": 1,
    "MLM + MFM": 2,
    "MLM + MFM + FOM": 3,
    "MLM + MFM + FOM + VSM": 4,
}
ENCODERS = {  # row -> (flat, pre-trained)
    "flat, from scratch": (True, False),
    "hierarchical, from scratch": (False, False),
    "flat, pre-trained": (True, True),
    "hierarchical, pre-trained": (False, True),
}


def store_path(seed: int, hide: str = "") -> str:
    """Where a corpus lies."""
    return files.join(home.root(), "stores", f"real-{seed}" if not hide else f"no-{hide}-{seed}")


def stores(seeds: Sequence[int]) -> list[Job]:
    """The corpora of all seeds, whole and seen through one modality."""
    return [
        Job(
            files.name_of(path := store_path(seed, hide)),
            (("build_store", "synthetic", "--out", path, "--seed", str(seed), *CORPUS, *flags),),
        )
        for seed in seeds
        for hide, flags in (("", ()), *((part, ("--hide", part)) for part in HIDDEN.values()))
    ]


@dataclass(frozen=True)
class Start:
    """Where a fine-tuning starts: weights of a pre-training, or none."""

    stages: int = len(STAGES)  # pre-training tasks; 0: from scratch
    flat: bool = False

    def name(self, seed: int) -> str:
        """The pre-training's run."""
        encoder = "flat-" if self.flat else ""
        return f"pretrain-{encoder}{'-'.join(STAGES[: self.stages])}-{seed}"

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of the encoder."""
        return ("--model.flat",) if self.flat else ()


def pretraining(start: Start, seed: int) -> Job:
    """The pre-training of a start: the same number of steps, whatever the tasks."""
    off = [word for i in range(start.stages, len(STAGES)) for word in (f"--mixture.{i}.weight", "0")]
    name = start.name(seed)
    return Job(name, (("train", "pretrain_synthetic", *_run(name, seed), *off, *start.flags),))


def result_name(kind: str, start: Start, seed: int, hide: str = "") -> str:
    """The run fine-tuned from a start."""
    origin = start.name(seed).removeprefix("pretrain-") if start.stages else f"{'flat-' * start.flat}scratch-{seed}"
    return f"{kind}-{f'no-{hide}-' if hide else ''}{origin}"


def finetuning(kind: str, start: Start, seed: int, hide: str = "") -> Job:
    """Fine-tune from a start, and evaluate, on one corpus."""
    name, recipe = result_name(kind, start, seed, hide), KINDS[kind].recipe
    begun = ("--init-from", start.name(seed)) if start.stages else ()
    asked = ("--corpus", "synthetic", "--split", SPLIT, "--store", store_path(seed, hide))
    commands = (
        ("train", recipe, *_run(name, seed, hide), *begun, *start.flags),
        ("evaluate", "--run", name, *asked, "--json", result_path(name)),
    )
    return Job(name, commands, (start.name(seed),) if start.stages else ())


def result_path(name: str) -> str:
    """The evaluation of a run."""
    return files.join(home.root(), "learning", f"{name}.json")


def system(label: str) -> tuple[Start, str]:
    """Start and hidden modality of a row of the main table."""
    return Start(0 if label == SCRATCH else len(STAGES)), HIDDEN.get(label, "")


def jobs(seeds: Sequence[int], kinds: Sequence[str]) -> list[Job]:
    """Every training of these kinds and seeds, each once, pre-trainings first and the main table's before the others.

    `stores` come before.
    """
    studied = [kind for kind in kinds if kind in STUDIED]
    starts = [Start(stages) for stages in ABLATION.values()]
    starts += [Start(len(STAGES) * pre, flat) for flat, pre in ENCODERS.values()]
    tuned = [(kind, *system(label), seed) for seed in seeds for kind in kinds for label in SYSTEMS]
    tuned += [(kind, start, "", seed) for seed in seeds for kind in studied for start in starts]
    wanted: dict[str, Job] = {}
    for kind, start, hide, seed in tuned:
        own = [pretraining(start, seed)] if start.stages else []
        for job in (*own, finetuning(kind, start, seed, hide)):
            wanted[job.name] = job
    return list(wanted.values())


def _run(name: str, seed: int, hide: str = "") -> tuple[str, ...]:
    """Flags of every training."""
    quiet = ("--tracking.kind", "none", "--evaluation.every", "0")
    return ("--name", name, "--store", f"synthetic={store_path(seed, hide)}", "--seed", str(seed), *quiet)
