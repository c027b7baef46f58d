"""Run a job on a Ray cluster: the same words as here, packaged with the code, followed live.

python -m jobs.submit train pretrain_tv --store tv=s3://bucket/stores/tv/x --scale.num-workers 8
python -m jobs.submit --detach tune finetune_tvr --space fine_tuning --trials 50 --scheduler asha
python -m jobs.submit --attach pretrain_tv
python -m jobs.submit list
python -m jobs.submit logs pretrain_tv
python -m jobs.submit stop pretrain_tv
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jobs.cli import Parser, program_of, run_job, split_arguments, write_json

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from hero_platform.cluster.submit import Attempt, Job

PROGRAM = program_of("jobs.submit")
JOBS = ("train", "tune", "build_store", "evaluate")
VERBS = ("list", "logs", "stop")
OWN = ("--address", "--detach", "--again", "--retries", "--attach")  # flags that no job has
Needs = tuple[str, float, float]  # name of a job; CPUs and GPUs of its driver, 0: on the head, its work is elsewhere


def parser() -> argparse.ArgumentParser:
    """The flags of submitting; all behind the job's name belongs to the job."""
    built = Parser(
        prog=PROGRAM,
        description=__doc__,
        epilog="The job's name is that of its run or sweep; one that runs already is attached to.\n"
        "RAY_API_SERVER_ADDRESS names the cluster where --address does not; RAY_AUTH_TOKEN or ~/.ray/auth_token has\n"
        "its token. HERO_HOME, MLFLOW_TRACKING_URI and AWS_ENDPOINT_URL go along; credentials do not.",
    )
    built.add_argument("--address", default="", metavar="URL", help="of the job server (default http://127.0.0.1:8265)")
    built.add_argument("--detach", action="store_true", help="do not wait for its end")
    built.add_argument("--again", action="store_true", help="submit even a job that has finished")
    built.add_argument("--retries", type=int, default=3, metavar="N", help="starts after a driver that was lost (3)")
    built.add_argument("--attach", default="", metavar="NAME", help="follow a job that runs, or show how it ended")
    built.add_argument("--json", metavar="FILE", help="write what was found to FILE, machine-readable")
    built.add_argument("what", nargs="?", choices=(*JOBS, *VERBS), help="a job, or list, logs NAME, stop NAME")
    built.add_argument("words", nargs=argparse.REMAINDER, help="the job's own arguments")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, submit or ask; returns the job's exit code."""
    built = parser()
    own = built.parse_args(argv)
    if bool(own.attach) == bool(own.what):
        built.error(f"name a job ({', '.join(JOBS)}), or one of {', '.join(VERBS)}, or --attach NAME")
    if own.what == "list" and own.words:
        built.error("list takes no arguments")
    if own.what in ("logs", "stop") and len(own.words) != 1:
        built.error(f"{own.what} takes one name")
    if own.retries < 0:
        built.error(f"--retries must be at least 0, not {own.retries}")
    return run_job(PROGRAM, lambda: _job(own))


def _job(own: argparse.Namespace) -> int:
    from hero_platform import home
    from hero_platform.cluster.access import ClusterError, address_of, connect, in_one_sentence

    address = address_of(own.address)
    job = None
    if own.what in JOBS:
        job, dry = _asked(own)
        if dry:
            return _show(own, job, address)
    elif own.what != "list":
        home.check_name("job", own.attach or own.words[0])
    try:
        client = connect(address)
        with in_one_sentence(address):
            return _submit(own, client, job) if job else _known(own, client)
    except ClusterError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1


def _known(own: argparse.Namespace, client: JobSubmissionClient) -> int:
    """What is asked of jobs that the cluster knows."""
    from hero_platform.cluster.submit import attempts, newest

    if own.what == "list":
        return _list(own, attempts(client))
    attempt = newest(client, own.attach or own.words[0])
    if own.what == "stop":
        return _stop(own, client, attempt)
    if own.what == "logs":
        print(client.get_job_logs(attempt.id), end="")
        return 0
    return _follow(own, client, attempt)[0]


def _asked(own: argparse.Namespace) -> tuple[Job, bool]:
    """The job that the words ask for, checked as far as that can be done here; and whether it is a dry run.

    Raises:
        ValueError: the job would refuse them.
    """
    from hero_platform import home
    from hero_platform.cluster.submit import Job
    from hero_platform.credentials import without_credentials

    for word in own.words:
        if (shown := without_credentials(word)) != word:
            raise ValueError(
                f"{shown} was given with a credential in it, and a job's words are kept and shown on the cluster: "
                "set it in the environment of the cluster's nodes"
            )
        if (flag := word.partition("=")[0]) in OWN:
            raise ValueError(f"{flag} stands before the job: `{PROGRAM} {flag} ... {own.what} ...`")
    name, cpus, gpus = _KINDS[own.what](own.words)
    home.check_name("job", name)
    taken = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    taken.add_argument("--json", default=own.json)  # where the job would write it is elsewhere
    taken.add_argument("--dry-run", action="store_true")
    mine, words = taken.parse_known_args(own.words)
    own.json = mine.json
    return Job(name, f"jobs.{own.what}", tuple(words), own.retries, cpus, gpus), mine.dry_run


def _train(words: list[str]) -> Needs:
    from jobs import train
    from jobs.arguments import configure

    own, overrides = split_arguments(train.parser(), words)
    config = configure(own, overrides, train.PROGRAM, here=False)
    name = config.name or own.recipe
    if config.scale.num_workers:
        return name, 0.0, 0.0
    return name, float(config.scale.threads_per_worker or 1), config.scale.gpus_per_worker


def _tune(words: list[str]) -> Needs:
    from jobs import tune
    from jobs.arguments import configure

    own, overrides = split_arguments(tune.parser(), words)
    name = tune.sweep_name(own)
    own.name = ""
    configure(own, overrides, tune.PROGRAM, here=False)
    return name, 0.0, 0.0


def _evaluate(words: list[str]) -> Needs:
    from hero_platform import home
    from jobs import evaluate

    own = evaluate.parser().parse_args(words)
    for what, name in (("run", own.run), ("corpus", own.corpus), ("split", own.split), ("evaluation", own.name)):
        if name:
            home.check_name(what, name)
    *folders, of = [own.run] if own.run else own.checkpoint.rstrip("/").split("/")
    if len(folders) > 1 and folders[-1] == "checkpoints":  # those of several runs have the same names
        of = f"{folders[-2]}-{of}"
    variant = f"{f'-{own.step}' if own.step else ''}{evaluate.variant(own)}"  # others may run at the same time
    return (
        f"evaluate-{of}-{own.name or f'{own.corpus}-{own.split}{variant}'}",
        0.0 if own.workers else float(own.threads),
        0.0,
    )


def _build_store(words: list[str]) -> Needs:
    from hero_platform import home
    from jobs import build_store

    own = build_store.parser().parse_args(words)
    if own.command == "inspect":
        raise ValueError("build_store inspect only reads: run it here")
    home.check_name("corpus", own.corpus)
    if own.name:
        home.check_name("store", own.name)
    of = own.name if own.command != "annotations" else "-".join(filter(None, [own.command, own.split]))
    return f"build_store-{own.corpus}-{of or own.feature_set or own.command}", 0.0, 0.0


_KINDS: dict[str, Callable[[list[str]], Needs]] = {
    "train": _train,
    "tune": _tune,
    "evaluate": _evaluate,
    "build_store": _build_store,
}


def _show(own: argparse.Namespace, job: Job, address: str) -> int:
    """What would be submitted."""
    from hero_platform.cluster.package import code_files
    from hero_platform.cluster.submit import environment

    paths = code_files()
    size = sum(path.stat().st_size for path in paths)
    facts = {
        "name": job.name,
        "address": address,
        "entrypoint": job.entrypoint,
        "entrypoint_cpus": job.cpus,
        "entrypoint_gpus": job.gpus,
        "environment": environment(),
        "package": {"files": len(paths), "bytes": size},
    }
    print(f"would submit {job.name} to {address}: {len(paths)} files, {size / 1e6:.1f} MB of code")
    print(job.entrypoint)
    for name, value in environment().items():
        print(f"{name}={value}")
    write_json(own.json, facts)
    return 0


def _submit(own: argparse.Namespace, client: JobSubmissionClient, job: Job) -> int:
    from hero_platform.cluster.attach import went_with_its_node
    from hero_platform.cluster.submit import submit

    for _ in range(job.retries + 1):
        found = submit(client, job, again=own.again)
        for note in found.notes:
            print(f"{PROGRAM}: {note}", file=sys.stderr)
        if found.how == "finished":
            print(
                f"job {job.name} has finished already, submitted by {found.attempt.submitter}; --again submits it again"
            )
            return _ended(own, found.attempt)
        how = "submitted" if found.how == "submitted" else "runs already"
        print(f"job {job.name} {how} (attempt {found.attempt.number})", file=sys.stderr)
        if own.detach:
            print(f"{PROGRAM} --attach {job.name} follows it", file=sys.stderr)
            return _ended(own, found.attempt)
        code, ended = _follow(own, client, found.attempt)
        if ended is None or not went_with_its_node(ended):
            return code
        print(f"{PROGRAM}: job {job.name} was lost with its machine", file=sys.stderr)
    return code


def _follow(own: argparse.Namespace, client: JobSubmissionClient, attempt: Attempt) -> tuple[int, Attempt | None]:
    """Show a job until it ends, or until Ctrl-C says what to do with it; an exit code, and how it ended if it did."""
    from hero_platform.cluster.attach import LostConnectionError, follow

    try:
        ended = follow(client, attempt)
    except LostConnectionError as error:
        print(f"{PROGRAM}: {error}; `{PROGRAM} --attach {attempt.name}` follows the job again", file=sys.stderr)
        return 1, None
    except KeyboardInterrupt:
        if _wants_stop():
            _stop(own, client, attempt)
            return 130, None
        print(f"\njob {attempt.name} goes on; {PROGRAM} --attach {attempt.name} follows it", file=sys.stderr)
        return 130, None
    return _ended(own, ended), ended


def _wants_stop() -> bool:
    """Ask what Ctrl-C means; without a terminal, or after a second one, the job is left alone."""
    if not sys.stdin.isatty():
        return False
    try:
        return input("\nstop the job, or leave it running? [s/L] ").strip().lower().startswith("s")
    except (KeyboardInterrupt, EOFError):
        return False


def _stop(own: argparse.Namespace, client: JobSubmissionClient, attempt: Attempt) -> int:
    from hero_platform.cluster.attach import wait
    from hero_platform.cluster.submit import refreshed, stop

    now = refreshed(client, attempt)
    if now.over:
        print(f"job {attempt.name} is over already: {now.status.lower()}")
        return 0
    stop(client, attempt)
    pending = now.status == "PENDING"  # Ray tells a job that has not begun only when it does
    what = "waits for a machine, and ends as soon as it has one" if pending else "was asked to commit and end"
    print(f"job {attempt.name} {what}", file=sys.stderr)
    _ended(own, wait(client, attempt))
    return 0


def _ended(own: argparse.Namespace, attempt: Attempt) -> int:
    """Say how a job stands; returns its exit code."""
    from dataclasses import asdict

    from hero_platform.cluster.attach import exit_code

    code = exit_code(attempt) if attempt.over else 0
    if attempt.over:
        print(f"job {attempt.name} {attempt.status.lower()}, exit code {code}", file=sys.stderr)
        if attempt.exit_code is None and attempt.message:
            print(f"{PROGRAM}: {' '.join(attempt.message.split())}", file=sys.stderr)
    write_json(own.json, {**asdict(attempt), "returned": code})
    return code


def _list(own: argparse.Namespace, found: Sequence[Attempt]) -> int:
    from dataclasses import asdict

    from hero_platform.report.table import aligned
    from hero_platform.telemetry import duration

    rows = [["name", "attempt", "status", "took", "submitted by"]]
    for attempt in found:
        took = ((attempt.ended_ms or time.time() * 1000) - attempt.started_ms) / 1000
        rows.append(
            [attempt.name, str(attempt.number), attempt.status.lower(), duration(max(took, 0.0)), attempt.submitter]
        )
    print(aligned(rows) if found else "the cluster knows no job of this project")
    write_json(own.json, {"jobs": [asdict(attempt) for attempt in found]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
