"""A place in host memory for a set of tensors, allocated once, that is written as a safetensors file.

Saving a training state must not stall training: it is copied into memory that exists already, beside the gradients of
the next step, and written from there. The buffer is laid out as the file's data section, so writing needs no further
copy, and every long operation (copying, hashing, writing) leaves the interpreter free for the training thread.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import BinaryIO

import torch
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BLOCK = 8 << 20  # bytes hashed and written at a time


class HostBuffer:
    """Memory for tensors of fixed names, shapes and types; pinned when they live on a GPU.

    Args:
        like: the tensors that `fill` will be given, or any of the same shapes and types.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        # widest type first: views stay aligned without the holes that the format forbids
        names = sorted(like, key=lambda name: (-like[name].element_size(), name))
        entries: dict[str, object] = {}
        spans: dict[str, tuple[int, int]] = {}
        end = 0
        for name in names:
            tensor = like[name]
            begin, end = end, end + tensor.numel() * tensor.element_size()
            spans[name] = begin, end
            entries[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._header = struct.pack("<Q", len(header)) + header
        gpu = next((tensor.device for tensor in like.values() if tensor.is_cuda), None)
        self._stream = None if gpu is None else torch.cuda.Stream(gpu)
        self._flat = torch.empty(end, dtype=torch.uint8, pin_memory=gpu is not None)
        self._flat.zero_()  # touch every page now: the first copy must not pay for the page faults
        self._views = {
            name: self._flat[begin:end].view(like[name].dtype).view(like[name].shape)
            for name, (begin, end) in spans.items()
        }
        self._tensors: Mapping[str, Tensor] = {}

    def begin(self, tensors: Mapping[str, Tensor]) -> None:
        """Say what to copy, as it is behind all work queued so far: it may not change until `fill` has returned."""
        assert tensors.keys() == self._views.keys(), "a checkpoint's tensors never change their names"
        self._tensors = tensors
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    @torch.no_grad()
    def fill(self) -> None:
        """Copy, in any thread and on a GPU beside whatever it computes; returns when the copies are complete."""
        with torch.cuda.stream(self._stream):  # no stream, no effect
            for name, view in self._views.items():
                source = self._tensors[name]
                assert source.shape == view.shape and source.dtype == view.dtype, name
                view.copy_(source, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()

    def not_finite(self) -> str:
        """Name of a tensor in the copy that holds an infinite value or none at all; empty as it should be."""
        floating = (name for name, view in self._views.items() if view.is_floating_point())
        return next((name for name in floating if not torch.isfinite(self._views[name]).all()), "")

    def write(self, stream: BinaryIO) -> tuple[int, str]:
        """Write the safetensors file; returns its size in bytes and its hex SHA-256."""
        digest = hashlib.sha256(self._header)
        stream.write(self._header)
        data = memoryview(self._flat.numpy().data)
        for begin in range(0, len(data), _BLOCK):
            block = data[begin : begin + _BLOCK]
            digest.update(block)
            stream.write(block)
        return len(self._header) + len(data), digest.hexdigest()
