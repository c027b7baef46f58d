"""The process that decodes one film, started by `decoder.py`: a JSON request as its argument, messages on its stdout.

A message is a line of JSON and the bytes it announces. No pickle: what a crafted film might make of this process must
not run in the one that reads it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from typing import Any, BinaryIO

import numpy as np


def main() -> None:
    """Decode, and say at the end what the film is or why it is none."""
    request = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_AS, (request["max_bytes"], request["max_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import av

    av.logging.set_level(av.logging.PANIC)
    out = sys.stdout.buffer
    try:
        (_sound if request["what"] == "sound" else _pictures)(request, out)
    except ValueError as error:
        _send(out, {"kind": "reject", "reason": str(error)})
    except (MemoryError, av.error.MemoryError):
        _send(
            out, {"kind": "reject", "reason": f"decoding it takes more than {request['max_bytes'] >> 20} MB of memory"}
        )
    except (av.error.FFmpegError, OSError) as error:
        _send(out, {"kind": "reject", "reason": f"it cannot be decoded: {error.strerror or error}"})
    out.flush()


def _end_with_parent() -> None:
    """Nothing is ever said on stdin: it closes when the process that started this one has died, however it did."""
    os.read(0, 1)
    os._exit(1)


def _pictures(request: dict[str, Any], out: BinaryIO) -> None:
    """Messages: one per interval with its pictures, view after view; then the facts."""
    from hero_platform.video import decode
    from hero_platform.video.views import View

    facts = decode.Facts()
    views = tuple(View(**view) for view in request["views"])
    with decode.open_film(request["path"]) as container:
        stream = decode.video_stream(container)
        sampler = decode.Sampler(views, request["interval_s"], float(stream.sample_aspect_ratio or 1))
        track = decode.text_track(container, request["languages"])
        for frame, time_s in decode.frames_of(container, stream, track, facts):
            if time_s > request["max_seconds"]:
                raise ValueError(f"longer than {request['max_seconds'] / 3600:g} hours")
            for interval in sampler.show(frame, time_s):
                _send(out, {"kind": "interval"}, *interval)
    for interval in sampler.finish(facts.duration_s):
        _send(out, {"kind": "interval"}, *interval)
    _send(out, {"kind": "end", **vars(facts)})


def _sound(request: dict[str, Any], out: BinaryIO) -> None:
    from hero_platform.video import decode

    with decode.open_film(request["path"]) as container:
        for block in decode.sound(container):
            _send(out, {"kind": "sound"}, block)
    _send(out, {"kind": "end"})


def _send(out: BinaryIO, message: dict[str, Any], *arrays: np.ndarray) -> None:
    out.write(json.dumps({**message, "bytes": sum(array.nbytes for array in arrays)}).encode() + b"\n")
    for array in arrays:
        out.write(np.ascontiguousarray(array).data.cast("B"))


if __name__ == "__main__":
    main()
