"""Maps the folders to packages; all metadata is in pyproject.toml.

``hypermask_fast/kernels`` is a symlink to ``kernels/``, for tools that read the checkout. The
search leaves it out and the mapping adds the folder itself, so that it is packaged exactly once,
even where a checkout has lost the link, as an sdist has: there it is made anew.
"""

from contextlib import suppress
from pathlib import Path

from setuptools import find_packages, setup

KERNELS = "hypermask_fast.kernels"

with suppress(FileExistsError):
    Path(__file__).with_name("hypermask_fast").joinpath("kernels").symlink_to("../kernels")

setup(
    packages=[
        *find_packages(include=["hypermask_fast*"], exclude=[KERNELS, f"{KERNELS}.*"]),
        KERNELS,
        *(f"{KERNELS}.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"hypermask_fast": "hypermask_fast", KERNELS: "kernels"},
    package_data={
        "hypermask_fast": ["py.typed"],
        "hypermask_fast.native": ["*.cpp", "*.h"],
        "hypermask_fast.scenarios": ["*.npz", "*.txt"],
        "hypermask_fast.settings.presets": ["*.toml"],
        KERNELS: ["*.json"],
    },
)
