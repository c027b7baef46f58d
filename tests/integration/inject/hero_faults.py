"""Makes a process fail at a chosen place: before or after the n-th call of a function of ours or of `os`.

Nothing in the code under test knows of this. Functions of ours are wrapped when their module is imported.
"""

import contextlib
import errno
import functools
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import threading
import time


def arm_all(text):
    """Arm faults given as JSON: a list of `{"target", "when", "nth", "act", "where", "once", "rank"}`.

    target: `module:function` or `module:Class.method`; when: before, after; nth: which call, from 1; act: a signal's
    name for this process, `RuntimeError`, an errno's name, `hang`, `tear` (half of the bytes argument is passed on,
    then SIGKILL), or `s3:CODE`, an answer of the object store; where: text that the arguments hold; once: a path that
    marks it as done, for every process that has the same faults; rank: of torch.distributed, -1: any.
    """
    for spec in json.loads(text):
        fault = Fault(**spec)
        module, _, name = fault.target.partition(":")
        if module in sys.modules:
            wrap(sys.modules[module], name, fault)
        else:
            sys.meta_path.insert(0, OnImport(module, name, fault))


class Fault:
    """One fault, and how often its place was reached."""

    def __init__(self, target, when, nth, act, where="", once="", rank=-1):
        self.target, self.when, self.nth, self.act = target, when, nth, act
        self.where, self.once, self.rank = where, once, rank
        self.calls, self.lock = 0, threading.Lock()

    def due(self, given):
        """Whether this call is the one."""
        if self.where not in str(given) or self.rank not in (-1, _rank()):
            return False
        with self.lock:
            self.calls += 1
            if self.calls != self.nth:
                return False
        if self.once:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
                return True
            return False
        return True

    def happen(self):
        """Fail."""
        if self.act == "RuntimeError":
            raise RuntimeError(f"a fault was injected {self.when} {self.target}")
        if self.act == "hang":
            time.sleep(3600)
        if self.act.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.act))
            time.sleep(0.2)  # a handler runs in the main thread
            return
        if self.act.startswith("s3:"):
            from botocore.exceptions import ClientError

            code = self.act.removeprefix("s3:")
            raise ClientError({"Error": {"Code": code, "Message": "injected"}}, "PutObject")
        number = getattr(errno, self.act)
        raise OSError(number, os.strerror(number))


def wrap(module, name, fault):
    """Replace a function of a module by one that fails when it is due."""
    *owners, last = name.split(".")
    owner = functools.reduce(getattr, owners, module)
    function = getattr(owner, last)

    @functools.wraps(function)
    def wrapped(*given, **named):
        due = fault.due(given)
        if due and fault.act == "tear":
            halves = [part[: len(part) // 2] if isinstance(part, bytes) else part for part in given]
            function(*halves, **named)
            os.kill(os.getpid(), signal.SIGKILL)
        if due and fault.when == "before":
            fault.happen()
        result = function(*given, **named)
        if due and fault.when == "after":
            fault.happen()
        return result

    setattr(owner, last, wrapped)


class OnImport(importlib.abc.MetaPathFinder):
    """Wraps a function as soon as its module is loaded."""

    def __init__(self, module, name, fault):
        self.module, self.name, self.fault = module, name, fault

    def find_spec(self, name, path=None, target=None):
        """Find the module as others do, and wrap after it has run."""
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            wrap(module, self.name, self.fault)

        spec.loader.exec_module = exec_module
        return spec


def _rank():
    """Rank of this process; 0 where there is no process group."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0
    return torch.distributed.get_rank()
