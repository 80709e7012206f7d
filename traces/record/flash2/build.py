"""Builds flash-attn for the virtual GPU, in a minute: its Python half and its host code as they are, with kernels that do nothing.

    ~/.cache/memsim-oracle/python traces/record/flash2/build.py      then record runs with `attention: flash_attention_2`

flash-attn has no binary wheel for these versions of PyTorch, and its kernels take hours to compile. What it allocates is decided by
flash_attn_interface.py and csrc/flash_attn/flash_api.cpp, which are taken from its source distribution; kernels.cpp stands for the kernels.
Nothing of flash-attn is kept in this repository.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile

HERE = pathlib.Path(__file__).parent
PACKAGES = ("flash-attn==2.8.3.post2", "einops==0.8.1")


def folder():
    """Where the build for this interpreter's torch is, to be put on sys.path."""
    from importlib import metadata

    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache) / f"memsim-flash-attn-torch{metadata.version('torch').partition('+')[0]}"


def main():
    import torch

    to = folder()
    to.mkdir(parents=True, exist_ok=True)
    site = pathlib.Path(torch.__file__).parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        source = fetch(pathlib.Path(scratch))
        cuda = next(path.parent for path in sorted((site / "nvidia").glob("*/include/cuda_runtime_api.h")))
        other = [path for path in (site / "nvidia").glob("*/include") if path != cuda]
        includes = [source / "csrc/flash_attn", source / "csrc/flash_attn/src", source / "csrc/cutlass/include", site / "torch/include",
                    site / "torch/include/torch/csrc/api/include", cuda, cuda / "cccl", *other, sysconfig.get_paths()["include"]]
        abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
        compile("g++", "-std=c++20" if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9) else "-std=c++17", "-w", "-O0", f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
                "-DTORCH_EXTENSION_NAME=flash_attn_2_cuda", "-DTORCH_API_INCLUDE_EXTENSION_H", *(f"-I{path}" for path in includes),
                source / "csrc/flash_attn/flash_api.cpp", HERE / "kernels.cpp", f"-L{site / 'torch/lib'}",
                "-lc10", "-lc10_cuda", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-ltorch_python", "-o", to / "flash_attn_2_cuda.so")
        for name in ("flash_attn", "flash_attn.egg-info"):
            shutil.copytree(source / name, to / name, dirs_exist_ok=True)
    compile("gcc", "-O1", HERE / "told.c", "-ldl", "-o", to / "libtold.so")
    print(to)


def compile(compiler, *arguments):
    subprocess.run([compiler, "-shared", "-fPIC", *map(str, arguments)], check=True)


def fetch(scratch):
    """flash-attn's source distribution, unpacked; einops, which it needs, goes to its place at once."""
    flash, einops = PACKAGES
    pip = [sys.executable, "-m", "pip"]
    environment = {**os.environ, "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
    subprocess.run([*pip, "install", "-q", "--no-deps", "--upgrade", "--target", str(folder()), einops], check=True)
    subprocess.run([*pip, "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", "flash-attn", "-d", str(scratch), flash], check=True, env=environment)
    with tarfile.open(next(scratch.glob("flash_attn-*.tar.gz"))) as archive:
        archive.extractall(scratch, filter="data")
    return next(path for path in scratch.glob("flash_attn-*") if path.is_dir())


if __name__ == "__main__":
    main()
