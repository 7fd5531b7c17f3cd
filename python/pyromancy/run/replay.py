"""Runs a function of tensors on a GPU as one CUDA graph, as launching a small kernel takes longer than running it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from .. import backends

Body = Callable[[list[Tensor]], list[Tensor]]
Key = tuple[Hashable, ...]  # whose run it is, and all that makes it another kind

GRAPHS = 8  # that a loop keeps; each holds the memory of one run
_MET = 64  # kinds of runs without a graph that it remembers
_FAILURES = 8  # after which it captures no more: a failed capture leaves something behind in PyTorch's allocator
_capturing = threading.Lock()  # PyTorch takes one capture at a time


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None:
        """Do it again on the current stream, with the same memory."""


class Recorder:
    """Captures on one device, into one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._kept: list[torch.cuda.CUDAGraph] = []
        # A pool that no graph uses any more cannot be used again; one graph that only writes a zero holds on to it.
        self._nothing()  # a kernel is loaded at its first launch, which a capture may not allow
        self._kept.append(self._record(self._nothing)[0])

    def capture(self, function: Callable[[], list[Tensor]]) -> tuple[Graph, list[Tensor]]:
        """Capture a function's kernels without running them.

        Returns:
            The graph, and the function's results, which every replay overwrites.

        Raises:
            RuntimeError: something in it cannot be captured; the device is as before.
        """
        return self._record(function)

    def _record(self, function: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        with _capturing, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            # A library's workspace must be the graph's own: one from before may be freed while the graph lives on,
            # and one of this graph's must not get into the next loop's.
            torch._C._cuda_clearCublasWorkspaces()
            try:
                # thread_local: what other threads do, such as pinning memory for the next batch, is no error
                with torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
                    results = function()
            except BaseException:
                self._recover(graph)
                raise
            finally:
                torch.cuda.set_stream(stream)  # an error at the end of a capture leaves its stream the current one
                torch._C._cuda_clearCublasWorkspaces()
        return graph, results

    def _recover(self, failed: torch.cuda.CUDAGraph) -> None:
        """Undo what PyTorch's versions before 2.12 leave of a failed capture.

        The allocator goes on to serve the capture, and the generator of random numbers believes that it is under way;
        the next capture that succeeds puts the generator right.
        """
        self._kept.append(failed)  # the allocator may ask it questions
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
        graph = torch.cuda.CUDAGraph()
        with suppress(RuntimeError), torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
            self._nothing()
        self._kept.append(graph)

    def _nothing(self) -> list[Tensor]:
        return [torch.zeros(1, device=self._device)]


def replayed(device: torch.device) -> bool:
    """Whether runs on a device are replayed."""
    return device.type == "cuda"


def recorder(device: torch.device) -> Recorder:
    """What captures on a device."""
    return Recorder(device)


@dataclass(frozen=True)
class _Recorded:
    """A captured run: its moving tensors, of which the first few are written, are its own."""

    graph: Graph
    body: Body  # kept for the constants that it reads
    moving: list[Tensor]
    written: int
    results: list[Tensor]

    def run(self, moving: list[Tensor]) -> list[Tensor]:
        _copy(self.moving, moving)
        self.graph.replay()
        _copy(moving[: self.written], self.moving[: self.written])
        return [t.clone() for t in self.results]


class Replay:
    """Runs of a loop's executors on a GPU: the first of its kind as it is, all after the second as one CUDA graph.

    Of the same kind are runs of one executor with the same options, on tensors of the same form; with the same memory
    where tensors do not move from batch to batch, such as parameters, which a graph reads where they are; and with the
    same kernels, as PyTorch's switches and `pyromancy.backends` choose them.
    """

    def __init__(self) -> None:
        self._notes: dict[object, str] = {}  # how the last run of each was run
        self._graphs: OrderedDict[Key, _Recorded] = OrderedDict()
        self._met: OrderedDict[Key, str] = OrderedDict()  # kinds without a graph; why, or "" for those met once
        self._recorders: dict[torch.device, Recorder] = {}
        self._failures = self._given_up = 0
        self._stream: Any = None  # of the last run

    def run(
        self, owner: object, options: Hashable, body: Body, tensors: list[Tensor], written: list[int], read: list[int]
    ) -> list[Tensor]:
        """Run a function of tensors.

        Args:
            owner: whose run it is.
            options: all else that the function depends on.
            body: takes the tensors, writes some of them in place and gives others; it must not wait for the device.
            tensors: its arguments.
            written: the ones that it writes, by index; they may be elsewhere in every run.
            read: of the others, those that may be elsewhere in every run.

        Returns:
            What the function gave, in memory of its own.
        """
        device = tensors[written[0]].device
        if reason := _obstacle(tensors, written, device):
            self._notes[owner] = f"no CUDA graph: {reason}"
            return body(tensors)
        places = [t.data_ptr() for t in tensors]
        for i in (*written, *read):
            places[i] = 0
        key = (owner, options, _switches(), *map(_form, tensors), *places)
        self._follow(device)
        moving = [tensors[i] for i in (*written, *read)]
        if (recorded := self._graphs.get(key)) is not None:
            self._graphs.move_to_end(key)
            self._notes[owner] = "all steps in one CUDA graph"
            return recorded.run(moving)
        reason = self._met.get(key)
        if reason == "" and self._failures == _FAILURES:
            reason = f"{_FAILURES} captures have failed"
        _remember(self._met, key, reason or "", _MET)
        self._notes[owner] = f"no CUDA graph: {reason}" if reason else "one CUDA graph from the third run of a kind on"
        if reason != "":
            return body(tensors)
        # This run, on the memory that is captured next: libraries choose by alignment, too, and a capture must not be
        # the first time that they do.
        mine = self._memory(moving)
        inputs = tensors.copy()
        for i, t in zip((*written, *read), mine, strict=True):
            inputs[i] = t
        _copy(mine, moving)
        results = body(inputs)
        _copy(moving[: len(written)], mine[: len(written)])
        try:
            if device not in self._recorders:
                self._recorders[device] = recorder(device)
            graph, given = self._recorders[device].capture(lambda: body(inputs))
        except Exception as error:
            self._met[key] = _first_line(error)
            self._failures += 1
            self._notes[owner] = f"no CUDA graph: {self._met[key]}"
        else:
            del self._met[key]
            self._given_up += len(self._graphs) == GRAPHS
            _remember(self._graphs, key, _Recorded(graph, body, mine, len(written), given), GRAPHS)
        return results

    def _memory(self, moving: list[Tensor]) -> list[Tensor]:
        """Memory for moving tensors: another graph's where there is one for such, as they run one after another."""
        forms = [_form(t) for t in moving]
        for recorded in self._graphs.values():
            if [_form(t) for t in recorded.moving] == forms:
                return recorded.moving
        return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in moving]

    def notes(self, owner: object) -> list[str]:
        """How the last run of one was run, for `InferenceLoop.explain`."""
        if owner not in self._notes:
            return []
        more = f"{self._given_up} CUDA graphs given up, as a loop keeps {GRAPHS}: such runs are captured anew"
        return [self._notes[owner], *([more] if self._given_up else [])]

    def forget(self, owner: object) -> None:
        """Give up the graphs of one whose runs are over."""
        for key in [k for k in (*self._graphs, *self._met) if k[0] is owner]:
            self._graphs.pop(key, None)
            self._met.pop(key, None)
        self._notes.pop(owner, None)

    def _follow(self, device: torch.device) -> None:
        """Let the current stream wait for that of the run before, whose memory it takes over."""
        if device.type != "cuda":
            return
        stream = torch.cuda.current_stream(device)
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
            for recorded in self._graphs.values():
                for t in recorded.moving:
                    t.record_stream(stream)
        self._stream = stream


def _obstacle(tensors: list[Tensor], written: list[int], device: torch.device) -> str | None:
    """Why a run cannot be one graph, as far as its tensors and the device tell."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "another is being captured"
    for t in tensors:
        if t.device != device:
            return f"a tensor of shape {tuple(t.shape)} is on {t.device}, and a graph would keep its value"
    if not all(tensors[i].numel() for i in written):
        return "a state is empty"
    return None


def _form(t: Tensor) -> Key:
    return t.shape, t.stride(), t.dtype, t.device


def product_precision() -> str:
    """Of float32 products, "highest", "high" or "medium", as the user has set it in PyTorch."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by newer names, of which that function does not know all
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


def _switches() -> Key:
    """What else decides which kernels run."""
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    return (
        backends.chosen(),
        matmul.fp32_precision,
        product_precision(),
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        cudnn.conv.fp32_precision,
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )


def _first_line(error: BaseException) -> str:
    """What went wrong first, and not that the capture then could not end."""
    first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
    return str(first).partition("\n")[0] or type(first).__name__


def _copy(to: list[Tensor], of: list[Tensor]) -> None:
    torch._foreach_copy_([_distinct(t) for t in to], [_distinct(t) for t in of])


def _distinct(t: Tensor) -> Tensor:
    """A tensor without the repetitions of an expanded one, which cannot be written."""
    strides = t.stride()
    if 0 not in strides:
        return t
    return t.as_strided([n if s else min(n, 1) for n, s in zip(t.shape, strides, strict=True)], strides)


def _remember(known: OrderedDict[Key, Any], key: Key, value: Any, limit: int) -> None:
    """Put a value in as the latest, and the one longest unused out."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > limit:
        known.popitem(last=False)
