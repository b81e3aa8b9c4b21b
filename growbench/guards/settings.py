"""Settings of the process that decide what code computes, and how fast: of torch, of Python, of the environment."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as hooks
from torch.optim import optimizer as optimizers
from torch.utils import _device, deterministic

VARIABLES = (  # of the environment; the beginnings of their names
    "CUBLAS_", "CUDA_", "GROWBENCH_", "LOCAL_RANK", "MASTER_", "MKL_", "NVIDIA_TF32", "OMP_", "PYTORCH_", "RANK", "WORLD_SIZE",
)  # fmt: skip
FLAGS = {  # in torch._C, as torch.backends may refuse to read what was set in its older way: name -> end of its setter's name
    "cudnn_enabled": "cudnn_enabled",
    "cudnn_benchmark": "cudnn_benchmark",
    "cudnn_deterministic": "cudnn_deterministic",
    "mkldnn_enabled": "mkldnn_enabled",
    "mkldnn_deterministic": "mkldnn_deterministic",
    "flash_sdp_enabled": "sdp_use_flash",
    "mem_efficient_sdp_enabled": "sdp_use_mem_efficient",
    "math_sdp_enabled": "sdp_use_math",
    "cudnn_sdp_enabled": "sdp_use_cudnn",
}
PRECISIONS = [("generic", "all"), *((backend, op) for backend in ("cuda", "mkldnn") for op in ("matmul", "conv", "rnn"))]
GLOBAL_HOOKS = [
    (holder, name)
    for holder in (hooks, optimizers)
    for name, value in vars(holder).items()
    if name.startswith("_global_") and isinstance(value, dict)
]


@dataclass(frozen=True)
class Setting:
    """A setting of the process: its name, how to read it, and how to put it back; None: it cannot be put back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any] | None = None


def _settings() -> Iterator[Setting]:
    yield Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield Setting("torch's default device", lambda: _device.CURRENT_DEVICE, torch.set_default_device)
    yield Setting("torch's gradient mode", torch.is_grad_enabled, torch._C._set_grad_enabled)
    yield Setting("torch's inference mode", torch.is_inference_mode_enabled)
    yield Setting("torch's anomaly detection", torch.is_anomaly_enabled, torch.set_anomaly_enabled)
    yield Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads)
    yield Setting("torch's number of interop threads", torch.get_num_interop_threads)
    yield Setting("torch's deterministic algorithms", _deterministic, _set_deterministic)
    yield Setting(
        "torch's opt_einsum", lambda: torch.backends.opt_einsum.enabled, partial(setattr, torch.backends.opt_einsum, "enabled")
    )
    yield Setting("torch's modes of function calls", torch._C._len_torch_function_stack)
    yield Setting("torch's modes of dispatch", torch._C._len_torch_dispatch_stack)
    for name, setter in FLAGS.items():
        yield Setting(f"torch's {name}", getattr(torch._C, f"_get_{name}"), getattr(torch._C, f"_set_{setter}"))
    for where in PRECISIONS:
        read, write = (partial(getattr(torch._C, f"_{do}_fp32_precision_{do}ter"), *where) for do in ("get", "set"))
        yield Setting(f"torch's float32 precision ({', '.join(where)})", read, write)
    for device in ("cpu", "cuda"):
        yield Setting(
            f"autocast on {device}", partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device)
        )
        yield Setting(
            f"autocast's dtype on {device}", partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device)
        )
    for holder, name in GLOBAL_HOOKS:
        kept = getattr(holder, name)
        yield Setting(f"{holder.__name__}.{name}", partial(dict, kept), partial(_refill, kept))
    yield Setting("the CUDA device", _cuda_device, _set_cuda_device)
    yield Setting("the working folder", os.getcwd, os.chdir)
    yield Setting("the environment", _environment, _set_environment)
    yield Setting("the signal handlers", _handlers, _set_handlers)
    yield Setting("the interval timer", lambda: signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0))
    yield Setting("the garbage collector", gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit)


def _deterministic() -> tuple[bool, bool, bool]:
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return *algorithms, deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def _set_deterministic(value: tuple[bool, bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    deterministic.fill_uninitialized_memory = value[2]  # type: ignore[attr-defined]


def _refill(kept: dict[Any, Any], value: dict[Any, Any]) -> None:
    kept.clear()
    kept.update(value)


def _cuda_device() -> int | None:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def _set_cuda_device(value: int | None) -> None:
    if value is not None:
        torch.cuda.set_device(value)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}


def _set_environment(value: dict[str, str]) -> None:
    for name in _environment().keys() - value.keys():
        del os.environ[name]
    os.environ.update(value)


def _handlers() -> dict[int, Any]:
    """Not that of SIGCHLD, which torch's loader of batches sets when its processes start."""
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)}


def _set_handlers(value: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
        for number, handler in value.items():
            signal.signal(number, handler)


SETTINGS = list(_settings())


class Settings:
    """All settings, and the states of generators that a resumed run does not restore, as they are now."""

    def __init__(self) -> None:
        self.values = [setting.read() for setting in SETTINGS]
        self.random = _random_states()

    def changes(self) -> str:
        """The first setting that has changed since, in words; empty if none has."""
        for setting, before in zip(SETTINGS, self.values, strict=True):
            now = setting.read()
            if now != before:
                then, today = _different(before, now)
                return f"changed {setting.name} from {then} to {today}"
        return ""

    def random_changes(self) -> str:
        """Whether torch was seeded, or Python's or NumPy's global generator drawn from, in words; empty if not."""
        return "" if _random_states() == self.random else "seeds torch, or draws from Python's or NumPy's global generator"

    def restore(self) -> None:
        """Put back what has changed, as far as that is possible."""
        for setting, before in zip(SETTINGS, self.values, strict=True):
            if setting.write and setting.read() != before:
                setting.write(before)


def _different(before: Any, now: Any) -> tuple[str, str]:
    """Both values as text; of tables only what differs."""
    if isinstance(before, dict):
        before, now = (
            {key: value for key, value in one.items() if other.get(key) != value} for one, other in ((before, now), (now, before))
        )
    return tuple(" ".join(str(each).split())[:80] for each in (before, now))  # type: ignore[return-value]


def _random_states() -> tuple[Any, ...]:
    """Torch's seed, and the states of the generators that checkpoints do not store."""
    numpy: Any = np.random.get_state(legacy=False)
    values = [value.tobytes() if isinstance(value, np.ndarray) else value for value in numpy.pop("state").values()]
    return torch.initial_seed(), random.getstate(), numpy, values
