"""Examples of a case, as the oracle's collation and the packed model's assembly both take them."""

from __future__ import annotations

from collections.abc import Sequence

from oracle import collate, collate_captions, collate_readings
from oracle.collate import Caption, Query, Question, Segment, Statement, Video
from oracle.model import Batch
from parity import golden
from parity.golden import Case


def batch(task: str, videos: Sequence[Video]) -> Batch:
    """Collate for a task."""
    if task == "mlm":
        return collate.mlm_batch(videos)
    if task in ("mfm-nce", "mffr"):
        return collate.mfm_batch(videos)
    if task in ("videoqa", "violin"):
        return (collate_readings.question_batch if task == "videoqa" else collate_readings.statement_batch)(videos)
    if task == "tvc":
        return collate_captions.caption_batch(videos)
    return collate.fom_batch(videos) if task == "fom" else collate.query_batch(videos)


def split(task: str, batch: Batch) -> list[Video]:
    """The examples of an official batch."""
    if task == "mlm":
        return collate.split_mlm(batch)
    if task in ("videoqa", "violin"):
        return (collate_readings.split_questions if task == "videoqa" else collate_readings.split_statements)(batch)
    return collate_captions.split_captions(batch) if task == "tvc" else collate.split(batch)


def of_raw(case: Case) -> list[Video]:
    """The examples of a solo case, from its raw.json."""
    frames = golden.read_tensors(case.set / "solo" / "frames.safetensors")
    videos = []
    for raw in golden.read_json(case.batch.with_name("raw.json"))["videos"]:
        videos.append(
            Video(
                frames=frames[raw["vid"]],
                segments=[
                    Segment(s["model_input_ids"], s["frames"], s.get("labels"), s["token_ids"]) for s in raw["subs"]
                ],
                mask=[bool(m) for m in raw["frame_mask"]] if "frame_mask" in raw else None,
                order=raw.get("orders"),
                targets=raw.get("targets"),
                queries=tuple(
                    Query(q["model_input_ids"], tuple(q["target"]), q.get("sub_idx")) for q in raw.get("queries", ())
                ),
                question=_question(raw["question"]) if "question" in raw else None,
                statements=tuple(Statement(s["ids"], s["target"]) for s in raw.get("statements", ())),
                captions=tuple(Caption(c["ids"], tuple(c["range"])) for c in raw.get("captions", ())),
            )
        )
    return videos


def _question(raw) -> Question:
    return Question(raw["q_ids"], raw["answer_ids"], raw["target"], tuple(raw["ts_target"]))
