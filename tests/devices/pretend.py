"""A pretend accelerator: tensors that say they are on a device, carry real values, and are strict about it.

`Accelerator` is a context. Within, `DEVICE` takes tensors, modules, factories, autocast, loss scales and fused
optimizers. Every operation runs on the CPU below, so results are right, and three things are seen that a CPU hides:

- an operation that is given tensors of both sides raises MixedDevicesError;
- what makes the host wait for the device is noted, with the function of raybrew that asked for it: reading a value,
  shapes that depend on values, copies that are not `non_blocking`, indices that lie on the host;
- the types that each operation was given are noted on request, under CUDA's rules of autocast.

It shows neither speed nor memory nor what kernels do. It registers torch's one spare backend for its process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import raybrew

__all__ = ["DEVICE", "Accelerator", "MixedDevicesError", "Seen", "Wait", "held_on_device", "site_of", "values_of"]

_NAME = "pretend"
_SOURCES = str(Path(raybrew.__file__).parent) + "/"
_TRANSFORMERS = str(Path(transformers.__file__).parent) + "/"
_SEQUENCES = (list, tuple)
aten = torch.ops.aten

#: Operations whose value or shape the host reads from the device.
_READS = {
    aten._local_scalar_dense,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.linalg_cholesky_ex,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
}
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
#: Operations that take tensors of both sides as a matter of course.
_CROSSING = {aten._to_copy, aten.copy_} | _INDEXING

#: CUDA's rules of autocast: what runs in the reduced type, what in float32, and what in the widest type it is given.
_REDUCED = """
addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d einsum linalg_multi_dot linalg_vecdot
linear matmul mm mv prelu scaled_dot_product_attention
"""
_FULL = """
acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss cosine_similarity cumprod cumsum
dist erfinv exp expm1 group_norm hinge_embedding_loss huber_loss kl_div l1_loss layer_norm linalg_matrix_norm
linalg_vector_norm log log10 log1p log2 log_softmax logsumexp margin_ranking_loss mse_loss multi_margin_loss
multilabel_margin_loss native_layer_norm nll_loss norm pdist poisson_nll_loss pow prod reciprocal renorm rsqrt
sinh smooth_l1_loss soft_margin_loss softmax softplus sum tan triplet_margin_loss
"""
_WIDEST = """
addcdiv addcmul atan2 bilinear cat cross dot index_put scatter_add stack tensordot vdot
"""


_active: list[Any] = []


class MixedDevicesError(Exception):
    """An operation was given tensors of the host and of the device."""


@dataclasses.dataclass(frozen=True)
class Wait:
    """The host waited for the device in `site`, a file and function of raybrew, by `operation`.

    `within` is the innermost function of transformers around it, empty without one.
    """

    site: str
    operation: str
    within: str = ""


@dataclasses.dataclass(frozen=True)
class Seen:
    """An operation, the floating types it was given, and the function of raybrew that called it."""

    site: str
    operation: str
    types: tuple[torch.dtype, ...]


class _OnDevice(Tensor):
    """A tensor of the device; `held` has its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _OnDevice:
        made: _OnDevice = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"on device: {self.held!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> _OnDevice:
        copied = _OnDevice(self.held.clone())
        memo[id(self)] = copied
        return copied

    def tolist(self) -> Any:
        for mode in _active[-1:]:
            mode.note_wait("tolist")
        return self.held.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        for mode in _active[-1:]:
            mode.note_wait("pickle")
        return self.held.__reduce_ex__(protocol)

    def numpy(self, *, force: bool = False) -> Any:
        raise MixedDevicesError(f"numpy in {site_of(sys._getframe())}: of a tensor on {DEVICE}")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # In a thread that an Accelerator was not entered in.
        return _run(_active[-1] if _active else None, func, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """Within, DEVICE exists. `waits` and, with `watch_types`, `seen` fill as operations run."""

    def __init__(self, watch_types: bool = False) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.seen: list[Seen] = []
        self.watch_types = watch_types

    def __enter__(self) -> Accelerator:
        _register()
        # torch.tensor(..., device=DEVICE) then copies what is made on the CPU, where we see it.
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self._threads = torch.autograd.set_multithreading_enabled(False)
        self._threads.__enter__()  # type: ignore[no-untyped-call]
        self._swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # Module.to keeps shared parameters shared
        _active.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _active.remove(self)
        super().__exit__(*error)
        torch.__future__.set_swap_module_params_on_conversion(self._swaps)
        self._threads.__exit__(*error)  # type: ignore[no-untyped-call]
        torch._C._set_only_lift_cpu_tensors(self._lifts)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(self, func, args, kwargs or {})

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within, what an operation is taken apart into is seen."""
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)

    def note_wait(self, operation: str) -> None:
        frame = sys._getframe()
        self.waits.append(Wait(site_of(frame), operation, _within(frame)))


def values_of(tensor: Tensor) -> Tensor:
    """What is on the device, for a test to look at; no wait is noted."""
    return tensor.detach().held if isinstance(tensor, _OnDevice) else tensor.detach()


def held_on_device() -> int:
    """How many tensors of the device are referred to from anywhere."""
    return sum(type(each) is _OnDevice for each in gc.get_objects())


def _run(mode: Accelerator | None, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if torch.is_inference_mode_enabled() and func._can_decompose():
        # There, operations come here before they are taken apart.
        with contextlib.nullcontext() if mode is None else mode.again():
            taken_apart = func.decompose(*args, **kwargs)
        if taken_apart is not NotImplemented:
            return taken_apart
    packet = func.overloadpacket
    flat = list(_leaves((args, kwargs)))
    on_device = [each for each in flat if isinstance(each, _OnDevice)]
    on_host = [each for each in flat if isinstance(each, Tensor) and not isinstance(each, _OnDevice)]
    wanted = [each for each in flat if isinstance(each, torch.device)]
    if packet is aten.is_pinned:
        return False
    if packet is aten._pin_memory:
        return args[0].clone()
    if not on_device and not any(each.type == _NAME for each in wanted):
        return func(*args, **kwargs)

    if mode is not None:
        if _waits(packet, args, kwargs, on_host, wanted):
            mode.note_wait(str(func))
        if mode.watch_types and packet is not aten._to_copy:
            found = tuple(each.dtype for each in on_device if each.dtype.is_floating_point)
            if found:
                mode.seen.append(Seen(site_of(sys._getframe()), packet.__name__, found))
    if packet not in _CROSSING and on_device and any(each.dim() > 0 for each in on_host):
        shapes = [(each.device.type, tuple(each.shape)) for each in flat if isinstance(each, Tensor)]
        raise MixedDevicesError(f"{func} in {site_of(sys._getframe())}: {shapes}")

    def below(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == _NAME:
            return torch.device("cpu")
        return value.held if isinstance(value, _OnDevice) else value

    plain_args, plain_kwargs = _mapped(below, args), _mapped(below, kwargs)
    plain_kwargs.pop("pin_memory", None)
    result = _LACKING.get(packet, func)(*plain_args, **plain_kwargs)
    to_host = any(each.type == "cpu" for each in wanted)
    if packet is aten.copy_ and not isinstance(args[0], _OnDevice):
        return args[0]
    if to_host:
        # The bytes of the device are others than those of the host.
        return result.clone() if isinstance(result, Tensor) and result is plain_args[0] else result
    known = {id(each.held): each for each in on_device}

    def above(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        with torch.inference_mode(False):  # a view of what was made outside must be as that is
            return _OnDevice(value)

    return return_and_correct_aliasing(func, args, kwargs, _mapped(above, result))


def _gru_cell(inputs: Tensor, states: Tensor, before: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor]:
    inputs, states = (
        gates if bias is None else gates + bias
        for gates, bias in zip((inputs, states), biases or (None, None), strict=True)
    )
    reset, update = (inputs + states).sigmoid().chunk(3, dim=1)[:2]
    of_state = states.chunk(3, dim=1)[2]
    new = (inputs.chunk(3, dim=1)[2] + reset * of_state).tanh()
    return new + update * (before - new), torch.cat([reset, update, new, before, of_state], dim=1)


def _gru_cell_backward(gradient: Tensor, kept: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    reset, update, new, before, of_state = kept.chunk(5, dim=1)
    of_new = gradient * (1 - update) * (1 - new.square())
    of_update = gradient * (before - new) * (1 - update) * update
    of_reset = of_new * of_state * (1 - reset) * reset
    found = [torch.cat([of_reset, of_update, last], dim=1) for last in (of_new, of_new * reset)]
    return *found, gradient * update, *(each.sum(dim=0) if has_bias else None for each in found)


#: Operations that accelerators have and the CPU lacks.
_LACKING = {
    aten._thnn_fused_gru_cell: _gru_cell,
    aten._thnn_fused_gru_cell_backward: _gru_cell_backward,
}


def _leaves(value: Any) -> Iterator[Any]:
    """What arguments of an operation are made of; torch's own walk of trees takes most of a test's time."""
    if isinstance(value, _SEQUENCES):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, _SEQUENCES):
        return type(value)([_mapped(change, each) for each in value])
    if isinstance(value, dict):
        return {name: _mapped(change, each) for name, each in value.items()}
    return change(value)


def _waits(packet: Any, args: Any, kwargs: dict[str, Any], on_host: list[Tensor], wanted: list[torch.device]) -> bool:
    """Whether the host waits for what the device has still to do, as CUDA's `set_sync_debug_mode` has it."""
    if packet in _READS:
        return True
    if packet is aten._to_copy:
        crosses = bool(wanted) and (wanted[0].type == _NAME) != isinstance(args[0], _OnDevice)
        return crosses and not kwargs.get("non_blocking", False)
    if packet is aten.copy_:
        crosses = isinstance(args[0], _OnDevice) != isinstance(args[1], _OnDevice)
        return crosses and not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    if packet in _INDEXING:
        masks = [each for each in args[1] if isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)]
        # One value for all that a mask chooses is filled in without counting them.
        fills = packet not in (aten.index, aten._unsafe_index) and len(args) > 2 and args[2].numel() == 1
        return bool(on_host and any(each.dim() > 0 for each in on_host)) or (bool(masks) and not fills)
    return False


def site_of(frame: FrameType | None) -> str:
    """The innermost function of raybrew in or around `frame`: `training/window.py:check`; `test` outside raybrew."""
    while frame is not None:
        site = _site_of_code(frame.f_code)
        if site is not None:
            return site
        frame = frame.f_back
    return "test"


def _within(frame: FrameType | None) -> str:
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_TRANSFORMERS):
            return f"{name[len(_TRANSFORMERS) :]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return ""


@functools.cache
def _site_of_code(code: CodeType) -> str | None:
    name = code.co_filename
    return f"{name[len(_SOURCES) :]}:{code.co_name}" if name.startswith(_SOURCES) else None


def _cast(value: Any, chosen: torch.dtype) -> Any:
    """A floating tensor of the device in another type; float64 and tensors of the host are left as they are."""
    fits = isinstance(value, Tensor) and value.device.type == _NAME and value.is_floating_point()
    return value.to(chosen) if fits and value.dtype is not torch.float64 else value


def _widest(values: Any) -> torch.dtype:
    found = [each.dtype for each in _leaves(values) if isinstance(each, Tensor) and each.is_floating_point()]
    return functools.reduce(torch.promote_types, found, torch.get_autocast_dtype(_NAME))


def _with_types(operation: Any, choose: Callable[[Any], torch.dtype]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            chosen = choose((args, kwargs))
            args, kwargs = _mapped(lambda each: _cast(each, chosen), (args, kwargs))
            return operation(*args, **kwargs)

    return run


def _overloads(names: str) -> Iterator[Any]:
    for name in names.split():
        packet = getattr(aten, name)
        for overload in packet.overloads():
            if not overload.endswith("out") and "Scalar" not in overload.split("_")[0]:
                yield getattr(packet, overload)


@functools.cache
def _register() -> tuple[torch.library.Library, ...]:
    """Make the device and its autocast known to torch, once a process; it cannot be undone."""
    _setup_privateuseone_for_python_backend(_NAME)
    module = getattr(torch, _NAME, None) or ModuleType(f"torch.{_NAME}")
    for name, value in {
        "_is_in_bad_fork": lambda: False,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "is_available": lambda: True,
        "manual_seed_all": lambda seed: None,
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
    }.items():
        setattr(module, name, value)
    if not hasattr(torch, _NAME):
        torch._register_device_module(_NAME, module)
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for names, choose in (
        (_REDUCED, lambda given: torch.get_autocast_dtype(_NAME)),
        (_FULL, lambda given: torch.float32),
        (_WIDEST, _widest),
    ):
        for operation in _overloads(names):
            library.impl(operation, _with_types(operation, choose))
    return others, library, _factories()


def _factories() -> torch.library.Library:
    """New tensors on the device in threads that no Accelerator was entered in."""

    def made(operation: Any) -> Callable[..., Tensor]:
        return lambda *args, device=None, pin_memory=None, **kwargs: _OnDevice(operation(*args, **kwargs))

    library = torch.library.Library("aten", "IMPL", "PrivateUse1")
    for operation in (aten.empty.memory_format, aten.empty_strided.default):
        library.impl(operation, made(operation))
    return library


_register()
DEVICE = torch.device(_NAME, 0)
