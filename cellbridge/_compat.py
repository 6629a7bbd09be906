"""Let a torchvision built for CUDA import beside a CPU build of torch.

The published torchvision links CUDA libraries; beside a CPU torch its compiled operators do not load, and `import torchvision`
then fails on the first operator it describes ("operator torchvision::nms does not exist"; pytorch/vision#9085), and with it
diffusers, peft, transformers and torch-fidelity. The guard defines the two missing operators and imports again. A torchvision
that imports by itself passes through untouched.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_libraries: list[Any] = []  # torch forgets an operator as soon as its library object goes


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader):
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self.inner.exec_module(module)
            return
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
        for name in [name for name in sys.modules if name.startswith("torchvision.")]:
            del sys.modules[name]
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        _libraries.append(library)
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        self.inner.exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Put the guard in front of the import system, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
