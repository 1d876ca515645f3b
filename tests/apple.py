"""An Apple GPU, emulated on the CPU: double precision on it raises, and so does what mixes it with the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sparserm_hf.runtime.processes import process_state

GPU, CPU = torch.device("mps"), torch.device("cpu")
DOUBLE = (torch.float64, torch.complex128)
MIXING = ("copy_", "_to_copy", "index", "index_put_", "_index_put_impl_")  # what takes tensors of both devices


def is_device(value: object) -> bool:
    """Whether a value is one of the two devices, or the name of one."""
    return isinstance(value, (str, torch.device)) and str(value) in ("mps", "cpu")


class OnGPU(torch.Tensor):
    """A tensor that says that it is on the GPU.

    Attributes:
        inner: Its numbers, on the CPU.
        operations: How many were run there.
    """

    inner: torch.Tensor
    operations = 0

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGPU:
        if inner.dtype in DOUBLE:
            raise TypeError("Cannot convert a MPS Tensor to float64: the MPS framework doesn't support float64.")
        place = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        about = {"dtype": inner.dtype, "requires_grad": inner.requires_grad}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **place, **about)

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    @property
    def device(self) -> torch.device:
        return GPU

    # These do not go through the dispatcher. There is no `numpy`: it raises, as on the GPU.
    def tolist(self) -> object:
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Run an operation on the CPU; what it gives is on the GPU."""
        OnGPU.operations += 1
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name not in MIXING and any(tensor.ndim and not isinstance(tensor, OnGPU) for tensor in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got some on the CPU.")
        args, kwargs = tree_map_only(OnGPU, lambda tensor: tensor.inner, (args, kwargs or {}))
        result = func(*args, **kwargs)
        if name.endswith("_") and not name.endswith("__"):  # in place
            return tensors[0]
        return tree_map_only(torch.Tensor, OnGPU, result)


class AppleGPU(TorchFunctionMode):
    """Where a tensor is asked for on the GPU, make it on the CPU and say that it is on the GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        devices = [torch.device(x) for x in (*args, kwargs.get("device")) if is_device(x)]
        if func is torch.Tensor.cpu:
            devices = [CPU]
        if func is torch._C._nn.pad_sequence:  # it makes its tensor in C++, where `device` is not asked
            devices = [args[0][0].device]
        if func is torch.Tensor.new_tensor:
            devices = [args[0].device]
        if not devices or func is torch._C._nn._parse_to:  # which makes no tensor, and is how `Module.to` begins
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(OnGPU, lambda tensor: tensor.inner, (args, kwargs))
        args = [CPU if is_device(x) else x for x in args]
        if "device" in kwargs:
            kwargs["device"] = CPU
        result = func(*args, **kwargs)
        return tree_map_only(torch.Tensor, OnGPU, result) if devices[0] == GPU else result


@contextmanager
def apple_gpu() -> Iterator[None]:
    """Make the package run on an emulated Apple GPU."""
    state = process_state()
    before, state.device = state.device, GPU
    # Views in inference mode are beyond a class of tensors that is written in Python.
    without_grad = {name: getattr(torch.no_grad, name) for name in ("__enter__", "__exit__")}
    # Otherwise `Module.to` writes into the parameters that are there, as between two tensors on the CPU.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with patch.multiple(torch.inference_mode, **without_grad, prev=False, create=True), AppleGPU():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        state.device = before
