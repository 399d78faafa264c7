"""Prints what a Horovod wheel has to fit: torch, Python, CUDA and NCCL of the running interpreter.

One NAME=VALUE a line, for scripts/build_horovod.sh. Decided by what torch was built with, never by
whether a GPU answers: login nodes have none.
"""

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path


def find_nccl() -> str:
    """The prefix with include/nccl.h and lib/libnccl.so*, or nothing."""
    prefixes = [os.environ.get("HOROVOD_NCCL_HOME"), os.environ.get("NCCL_HOME")]
    # torch's own comes first after an explicit wish: it is the one that is loaded in the process.
    try:
        bundled = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        bundled = None
    if bundled is not None and bundled.submodule_search_locations:
        prefixes.extend(bundled.submodule_search_locations)
    prefixes.extend([os.environ.get("CONDA_PREFIX"), os.environ.get("CUDA_HOME"), "/usr"])
    for prefix in prefixes:
        if not prefix or not (Path(prefix) / "include" / "nccl.h").is_file():
            continue
        if any((Path(prefix) / "lib").glob("libnccl.so*")):
            return prefix
    return ""


def find_cuda_home() -> str:
    """A toolkit that has its headers, or nothing: an nvcc alone may be a wrapper of another one."""
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), CUDA_HOME, os.environ.get("CONDA_PREFIX")]
    if nvcc is not None:
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    candidates.append("/usr/local/cuda")
    for candidate in candidates:
        if not candidate or not (Path(candidate) / "bin" / "nvcc").is_file():
            continue
        # conda keeps them below targets/.
        for include in [Path(candidate) / "include", *Path(candidate).glob("targets/*/include")]:
            if (include / "cuda_runtime.h").is_file():
                return candidate
    return ""


def main() -> None:
    try:
        import torch
    except ImportError as error:
        sys.exit(f"torch cannot be imported ({error})")
    cuda = torch.version.cuda or ""
    stack = {
        "torch": torch.__version__,
        "python": f"cp{sys.version_info.major}{sys.version_info.minor}",
        "machine": platform.machine(),
        "prefix": sys.prefix,
        "purelib": sysconfig.get_path("purelib"),
        "cuda": cuda,
        "cuda_home": find_cuda_home() if cuda else "",
        "nccl": find_nccl() if cuda else "",
    }
    for name, value in stack.items():
        print(f"{name}={value}")


if __name__ == "__main__":
    main()
