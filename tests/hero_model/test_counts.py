"""What a step may cost, in counts and not in seconds: rows computed, operators called, reads of the device, graphs.

A count that grows is a change that someone has to want: say in the commit what it buys, and pin the new one.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hero_model.config import EncoderConfig, HeroConfig, TextIds
from hero_model.multitask import MultiTaskHero
from hero_model.nn.layers import TransformerLayer, compile_blocks
from hero_model.packed.batch import Examples
from hero_model.tasks import Fom, Mfm, Mlm, Task, Vsm
from hero_model.tasks.base import At
from hero_platform.train.optim import OfficialAdamW, clip_gradients, param_groups, set_learning_rate

AT = At(seed=5, step=3)
TEXT = TextIds(mask=99, vocab_size=100, random_low=4, random_high=90)
TASKS: dict[str, Task] = {"mlm": Mlm(), "mfm": Mfm(), "fom": Fom(), "vsm": Vsm(span_drop=0.0)}
OPERATORS = {"mlm": 1884, "mfm": 3559, "fom": 3480, "vsm": 4857}
TOLERANCE = 0.03  # another version of torch may decompose an operator into a few more
FLOPS = {"mlm": 4_681_152, "mfm": 6_217_344, "fom": 6_155_328, "vsm": 13_593_384}
SYNCS = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "equal",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
)


@pytest.fixture(scope="module")
def model() -> MultiTaskHero:
    torch.manual_seed(0)
    stack = EncoderConfig(num_layers=2, num_heads=2, intermediate_size=32, max_positions=64)
    cfg = HeroConfig(hidden_size=16, frame_dim=8, vocab_size=104, cross=stack, temporal=stack, query=stack)
    return MultiTaskHero(cfg, tuple(TASKS.values()))


def _batch(kind: str, rows):
    return TASKS[kind].prepare(Examples(rows), AT, TEXT)


def _loss(model: MultiTaskHero, kind: str, batch) -> torch.Tensor:
    output, task = model(kind, batch, AT), TASKS[kind]
    terms = {name: value / batch.counts[name] for name, value in output.sums.items()}
    if output.pooled is not None:
        terms |= {n: v / c for n, (v, c) in task.pool_terms(output.pooled, batch.videos.clips, AT).items()}
    return torch.stack(list(terms.values())).sum()


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.masks = 0  # indexing with a mask: looks for what is true inside of one operator

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names[name] += 1
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        self.masks += sum(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices)
        return func(*args, **(kwargs or {}))


@contextmanager
def _rows_of(layers: list[TransformerLayer]) -> Iterator[list[list[int]]]:
    """Rows that attention and feed-forward of each layer compute, call by call."""
    seen: list[list[int]] = [[] for _ in layers]

    def watch(number: int):
        def note(_module, inputs, _output) -> None:
            seen[number].append(len(inputs[0]))

        return note

    hooks = []
    for number, layer in enumerate(layers):
        hooks += [part.register_forward_hook(watch(number)) for part in (layer.attention.qkv, layer.widen)]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", TASKS)
def test_every_row_that_is_computed_is_a_useful_one(kind: str, model: MultiTaskHero, random_rows):
    """Useful tokens over tokens computed is 1.0, and the last cross-modal layer computes what its task reads."""
    batch = _batch(kind, random_rows(1, 12))
    segments, layers = batch.videos.segments, list(model.hero.cross.layers)
    texts = [len(batch.queries.tokens)] if kind == "vsm" else []
    with _rows_of([*layers, *model.hero.temporal.layers]) as seen:
        _loss(model, kind, batch)
    rows = len(segments.order)
    assert batch.num_tokens == rows + sum(texts) == len(segments.tokens) + len(segments.frame_index) + sum(texts)
    assert seen[0] == [rows, rows, *(2 * texts)]
    reads = batch.reads if kind == "mlm" else segments.frame_reads
    wanted = len(batch.targets) if kind == "mlm" else len(segments.frame_index)
    assert len(reads.rows) == len(reads.places) == wanted < rows
    # qkv of the last layer is applied in parts: queries of the rows that are read, keys and values of all
    assert seen[1] == [wanted, *(2 * texts)]
    frames = [] if kind == "mlm" else 2 * [len(batch.videos.frames)]
    assert seen[2] == seen[3] == frames


@pytest.mark.parametrize("kind", TASKS)
def test_operators_of_a_step(kind: str, model: MultiTaskHero, random_rows):
    """Forward, backward, clipping and update of one step: how many operators, and none that waits for the device."""
    optimizer = OfficialAdamW(param_groups(model.named_parameters(), str, weight_decay=0.01))
    set_learning_rate(optimizer, 1e-4)
    batch = _batch(kind, random_rows(1, 12))
    with _Calls() as calls:
        _loss(model, kind, batch).backward()
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert [name for name in calls.names if name in SYNCS] == [] and not calls.masks
    assert calls.names.total() == pytest.approx(OPERATORS[kind], rel=TOLERANCE)
    groups = sum(bool(group["params"]) for group in optimizer.param_groups)
    assert calls.names["_fused_adamw_"] == groups


@pytest.mark.parametrize("kind", TASKS)
def test_work_of_a_step(kind: str, model: MultiTaskHero, random_rows):
    """Operations of all matrix products, forward and backward: a head that sees a row too many shows here."""
    batch = _batch(kind, random_rows(1, 12))
    with FlopCounterMode(display=False) as counter:
        _loss(model, kind, batch).backward()
    assert counter.get_total_flops() == FLOPS[kind]


def test_graphs_over_batch_sizes(model: MultiTaskHero, random_rows, monkeypatch: pytest.MonkeyPatch):
    """Each compiled block is one graph for any number of rows; sizes that come later compile nothing."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # else graphs of other tests would pass for those of this one
    torch.manual_seed(0)
    compiled = MultiTaskHero(model.hero.cfg, tuple(TASKS.values())).eval()
    compile_blocks(compiled)
    counts = []
    for videos in (3, 12, 5, 20, 9):
        for kind in TASKS:
            _loss(compiled, kind, _batch(kind, random_rows(videos, videos))).backward()
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] > 0 and len(set(counts)) == 1


def test_reads_name_each_row_once_and_leave_no_sequence_out(model: MultiTaskHero, random_rows):
    """A sequence of which nothing is read gives a row all the same; states of read rows do not depend on the others."""
    batch = _batch("mlm", random_rows(2, 9))
    lengths = batch.videos.segments.layout.offsets.diff().numpy()
    wanted = np.array([int(lengths[:3].sum()), 0, 1])
    reads = type(batch.reads).of(wanted, lengths)
    assert reads.layout.num_sequences == len(lengths)
    assert reads.rows[reads.places].tolist() == wanted.tolist()
    assert len(reads.rows) == len(lengths) + 1  # two rows of the first sequence
    model = model.eval()
    some, every = (model.hero.encode_segments(batch.videos, which) for which in (reads, None))
    torch.testing.assert_close(some, every[wanted], rtol=0, atol=1e-6)
    losses = []
    for which in (reads, None):
        model.zero_grad()
        states = model.hero.encode_segments(batch.videos, which)
        (states if which else states[wanted]).square().sum().backward()
        losses.append([p.grad.clone() for p in model.hero.cross.parameters() if p.grad is not None])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert replace(reads).rows is reads.rows
