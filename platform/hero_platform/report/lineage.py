"""What runs were made of, as flat facts by section, and where they differ: one meaning of "differs" for every job."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from hero_platform import config_io
from hero_platform.config import RunConfig, identity
from hero_platform.report.table import aligned
from hero_platform.tracking.base import flatten
from hero_platform.tracking.place import tags_of
from hero_platform.tracking.system import changed_files, provenance
from hero_platform.train.fork import origin_of
from hero_platform.train.records import Start, provenance_of, run_folder, starts_of

INPUTS = ("code", "data", "packages")  # sections without which nobody can promise equal losses
# What changes no bit: the number of threads is fixed.
_HARMLESS = ("host", "cores", "memory_gb", "submitter", "market", "region")
_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")  # people read the first 12 characters
_MOST_LINES = 40  # of a difference between patches

Flat = dict[str, str]


@dataclass(frozen=True)
class Facts:
    """What a run was made of; or, without starts, what it would be made of if it were started now."""

    name: str
    config: RunConfig
    provenance: Mapping[str, Any]  # as `tracking.system.provenance()`; what was not recorded is missing or empty
    starts: Sequence[Start] = ()

    @classmethod
    def of(cls, name: str) -> Facts:
        """Of a run, from its folder.

        Raises:
            ValueError: there is no such run, or nobody knows how it was started.
        """
        folder = run_folder(name)
        starts = starts_of(folder)
        if not starts:
            raise ValueError(f"run {name!r} in {folder} has no start on record: it never began, or starts/ is damaged")
        return cls(name, starts[-1].config, provenance_of(folder), starts)

    @classmethod
    def now(cls, config: RunConfig) -> Facts:
        """Of a resolved run if it were started here and now."""
        return cls("now", config, provenance())

    def sections(self) -> dict[str, Flat]:
        """Every fact by section and name; an empty section was not recorded, and what has not begun has no split."""
        settings, execution = _settings(self.config)
        return {
            "config": settings,
            "seed": {"seed": str(self.config.seed)},
            "code": self._code(),
            "data": _data(self.config),
            "packages": dict(line.partition("==")[::2] for line in self.provenance.get("packages", ())),
            "hardware": flatten(self.provenance.get("hardware", {})),
            "execution": execution,
            **(self._history() if self.starts else {}),
        }

    @property
    def patch(self) -> str:
        """Its uncommitted changes, as git printed them."""
        return str(self.provenance.get("git", {}).get("diff", ""))

    @property
    def commit(self) -> str:
        """Its commit; empty where there was no checkout."""
        return str(self.provenance.get("git", {}).get("commit", ""))

    def _history(self) -> dict[str, Flat]:
        """What only a run that has begun has."""
        return {"split": {"workers": _split(self.starts)}, "place": self._place(), "begun": self._origin()}

    def _place(self) -> Flat:
        """Who had it run, and where: the machines of its ranks, those of all starts together."""
        tags = tags_of(node for start in self.starts for node in start.nodes)
        facts = {"submitter": str(self.provenance.get("submitter", ""))}
        facts |= {tag.removeprefix("hero."): text for tag, text in tags.items()}
        return {name: text for name, text in facts.items() if text}

    def _origin(self) -> Flat:
        """Where it began."""
        origin = origin_of(self.name)
        return {"with": f"step {origin[1]} of run {origin[0]}" if origin else "initial weights"}

    def _code(self) -> Flat:
        if not self.commit:
            return {}
        changes = hashlib.sha256(self.patch.encode()).hexdigest() if self.patch else "none"
        facts = {"commit": self.commit, "uncommitted changes": changes}
        untracked = self.provenance["git"].get("untracked", "").splitlines()
        facts |= {f"new file {name}": "there" for name in untracked}  # git knows no more of it than the name
        if (versions := len({start.made_with for start in self.starts} - {""})) > 1:
            facts["over its starts"] = f"{versions} versions of code or packages, this is the last"
        return facts


@dataclass(frozen=True)
class Differences:
    """Where runs differ; the first is the reference."""

    names: tuple[str, ...]
    rows: dict[str, dict[str, tuple[str | None, ...]]]  # section -> fact -> its value in each run; None: it has none
    equal: tuple[str, ...]  # sections
    unknown: tuple[str, ...]  # sections that some run did not record
    changes: dict[str, dict[str, str]]  # run -> how its code differs from the first's: `code_changes`

    @classmethod
    def between(cls, facts: Sequence[Facts]) -> Differences:
        """Compare section by section."""
        sections = [each.sections() for each in facts]
        rows, equal, unknown = {}, [], []
        for section in (name for name in sections[0] if all(name in own for own in sections)):
            flats = [own[section] for own in sections]
            found = differing(flats)
            if section == "config":  # of a task that only some have, the row of the mixture says it all
                found = {name: values for name, values in found.items() if len(set(values) - {None}) > 1}
            if not all(flats):
                unknown.append(section)
            elif found:
                rows[section] = found
            else:
                equal.append(section)
        changes = {other.name: code_changes(facts[0], other) for other in facts[1:]}
        return cls(tuple(each.name for each in facts), rows, tuple(equal), tuple(unknown), changes)

    def named(self, sections: Sequence[str] = INPUTS, besides: Sequence[str] = ()) -> list[str]:
        """Which facts of these sections are not known to be equal, a phrase a section: `code (commit)`."""
        facts = {s: [name for name in self.rows.get(s, ()) if name not in besides] for s in sections}
        facts |= {section: ["not recorded"] for section in sections if section in self.unknown}
        return [f"{section} ({', '.join(names)})" for section, names in facts.items() if names]

    def explaining(self) -> list[str]:
        """What may have changed losses, in phrases as `named`; empty when all that is recorded was equal."""
        bearing = [section for section in self.rows if section != "execution"]
        bearing += [section for section in self.unknown if section not in ("execution", "place")]  # of old runs
        return self.named(bearing, _HARMLESS)

    def text(self) -> str:
        """For people: what is equal in one line, a table a section, then how the code differs, its first lines."""
        lines = [
            f"{what}: {', '.join(which)}"
            for what, which in (("equal", self.equal), ("not recorded", self.unknown))
            if which
        ]
        for section, rows in self.rows.items():
            cells = [[name, *(_cell(value) for value in values)] for name, values in rows.items()]
            lines += ["", aligned([[section, *self.names], *cells])]
        for name, changes in self.changes.items():
            lines += [
                f"\n{what} changes from {self.names[0]} to {name}\n{_shortened(text)}" for what, text in changes.items()
            ]
        return "\n".join(lines)


def differing(flats: Sequence[Flat]) -> dict[str, tuple[str | None, ...]]:
    """Names whose values are not the same in all, each with its value in all of them."""
    names = dict.fromkeys(name for flat in flats for name in flat)
    values = {name: tuple(flat.get(name) for flat in flats) for name in names}
    return {name: found for name, found in values.items() if len(set(found)) > 1}


def code_changes(old: Facts, new: Facts) -> dict[str, str]:
    """How the code of two runs differs: files `committed` between them, lines of their `uncommitted` patches."""
    committed = changed_files(old.commit, new.commit) if old.commit and new.commit else ""
    before, after = old.patch.splitlines(), new.patch.splitlines()
    patches = "\n".join(difflib.unified_diff(before, after, old.name, new.name, lineterm="", n=1))
    return {what: text for what, text in (("committed", committed.rstrip()), ("uncommitted", patches)) if text}


def _settings(config: RunConfig) -> tuple[Flat, Flat]:
    """Fields that decide the results and fields that say how, by dotted name; data, name and seed apart."""
    what, whole = _tree(identity(config)), _tree(config_io.to_dict(config))
    settings = flatten(what)
    return settings, {name: value for name, value in flatten(whole).items() if name not in settings}


def _tree(config: dict[str, Any]) -> dict[str, Any]:
    """A config with its tasks by name instead of by number."""
    tasks: dict[str, Any] = {}
    for entry in config["mixture"]:
        key = f"{entry['task']['kind']}/{entry['corpus']}"
        tasks[key if key not in tasks else f"{key}#{len(tasks)}"] = entry
    stores = {ref["corpus"]: ref["path"] for ref in config["stores"] if "path" in ref}
    rest = {name: value for name, value in config.items() if name not in ("name", "seed", "init_digest")}
    return {**rest, "stores": stores, "mixture": {"tasks": ", ".join(tasks), **tasks}}


def _data(config: RunConfig) -> Flat:
    """Digests of all that a run reads."""
    facts = {}
    for ref in config.stores:
        facts[ref.corpus] = ref.digest
        if ref.annotations:
            facts[f"{ref.corpus} annotations"] = ref.annotations
    return facts | ({"initial weights": config.init_digest} if config.init_digest else {})


def _split(starts: Sequence[Start]) -> str:
    """How the work of a run was split; of starts that split it otherwise, from which step on."""
    told = [(next(group).step, how) for how, group in groupby(starts, _how)]
    return told[0][1] if len(told) == 1 else "; ".join(f"from step {step}: {how}" for step, how in told)


def _how(start: Start) -> str:
    """The ranks of a start, and what else may round otherwise."""
    scale = start.config.scale
    more = {
        f" in micro-batches of {scale.micro_batch}": scale.micro_batch > 0,
        ", activations recomputed": scale.activation_checkpointing,
        ", compiled": scale.compile,
        ", not deterministic": not scale.deterministic,
    }
    which = "".join(words for words, holds in more.items() if holds)
    return f"{start.world} x {start.threads} threads on {start.device}{which}"


def _cell(value: str | None) -> str:
    return "-" if value is None else _DIGEST.sub(r"\1", value)


def _shortened(text: str) -> str:
    """The first lines of a text, and how many more there are."""
    lines = text.splitlines()
    more = len(lines) - _MOST_LINES
    return text if more <= 0 else "\n".join([*lines[:_MOST_LINES], f"({more:,} more lines: --json FILE has them)"])
