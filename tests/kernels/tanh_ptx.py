"""Prints, as JSON, the code for sm_90 of |tanh z| by the kernels and by the library's tanh.

Run as a program, without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.compiler import ASTSource
from triton.language.extra import libdevice

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.static.compile import gpu_of, use_target
from hypermask_fast.kernels.device import abs_tanh


@triton.jit
def kernels(z_ptr, y_ptr):
    lane = tl.arange(0, 32)
    tl.store(y_ptr + lane, abs_tanh(tl.load(z_ptr + lane)))


@triton.jit
def library(z_ptr, y_ptr):
    lane = tl.arange(0, 32)
    x = tl.abs(tl.load(z_ptr + lane))
    # It takes subnormal numbers for 0.
    tl.store(y_ptr + lane, tl.where(x < 1e-4, x, libdevice.tanh(x)))


if __name__ == "__main__":
    use_target("sm_90")
    signature, found = {"z_ptr": "*fp32", "y_ptr": "*fp32"}, {}
    for function in (kernels, library):
        source = ASTSource(fn=function, signature=signature)
        made = triton.compile(source, target=gpu_of("sm_90"), options={"num_warps": 1})
        found[function.__name__] = made.asm["ptx"]
    print(json.dumps(found))
