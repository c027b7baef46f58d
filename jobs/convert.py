"""Weights people already have, into checkpoints of ours and back. `--init-from DIR` starts from one.

python -m jobs.convert checkpoint hero-tv-ht100.pt --out outputs/hero-tv-ht100 --recipe pretrain_tv
python -m jobs.convert roberta roberta-base --out outputs/roberta
python -m jobs.convert official outputs/runs/tvr/checkpoints/step_00005000 --out tvr.pt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jobs.cli import Parser, add_common, program_of, run_job, write_json

PROGRAM = program_of("jobs.convert")
_SHOWN = 5


def parser() -> argparse.ArgumentParser:
    """The job's flags."""
    built = Parser(prog=PROGRAM, description=__doc__)
    built.add_argument(
        "what", choices=["checkpoint", "roberta", "official"], help="from HERO, from RoBERTa, or to HERO"
    )
    built.add_argument("source", metavar="PATH", help="a .pt or .safetensors file, RoBERTa's folder, or a checkpoint")
    built.add_argument("--out", required=True, metavar="PATH", help="folder to write; for `official` a file")
    built.add_argument("--recipe", default="pretrain_tv", help="its tasks say which heads there are (pretrain_tv)")
    built.add_argument(
        "--config", metavar="FILE", help="official model configuration, for other sizes than the paper's"
    )
    built.add_argument("--frame-dim", type=int, metavar="V", help="width of a frame, for roberta (4352)")
    add_common(built, name="unused here")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, convert, report; returns the exit code."""
    own = parser().parse_args(argv)
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from hero_model.official import config_from_official
    from hero_platform import files
    from hero_platform.sources.splits import read_json
    from hero_platform.train.convert import export_official, import_official, import_roberta, with_sizes
    from jobs.recipes import recipe

    if own.dry_run:
        if not files.exists(own.source):
            raise ValueError(f"there is nothing to convert at {own.source}")
        print(f"would convert {own.source} into {own.out}")
        return 0
    if own.what == "official":
        facts = export_official(own.source, own.out)
        print(f"wrote       {facts['file']} with {facts['tensors']} tensors under official names")
        write_json(own.json, facts)
        return 0
    config = recipe(own.recipe)
    raw: Any = read_json(own.config) if own.config else None
    model = config_from_official(raw) if own.config else None
    if own.what == "checkpoint":
        facts = import_official(own.source, own.out, config, model)
    else:
        from dataclasses import replace

        model = model or config.model
        if own.frame_dim is not None:
            model = replace(model, frame_dim=own.frame_dim)
        facts = import_roberta(own.source, own.out, replace(with_sizes(config, model), seed=own.seed or config.seed))
        print(f"vocabulary  padded by {facts['vocab_pad']} words: train with --model.vocab-pad {facts['vocab_pad']}")
    for name in ("missing", "unexpected", "ignored"):
        more = ", ..." if len(facts[name]) > _SHOWN else ""
        print(f"{name:<11} {len(facts[name])}" + (f": {', '.join(facts[name][:_SHOWN])}{more}" if facts[name] else ""))
    print(f"wrote       {facts['folder']} with {facts['tensors']} tensors")
    write_json(own.json, facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
