"""Runs random cases of the kernels, and says how to repeat those that fail."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

import torch

from tests.fuzz import head, layers, masks, steps
from tests.fuzz.case import DEVICE, Case

KERNELS = {**masks.KERNELS, **head.KERNELS, **layers.KERNELS, **steps.KERNELS}


def run(kernel: str, number: int, seed: int, verbose: bool) -> bool:
    """Run one case; print why it fails and how to repeat it."""
    case = Case(f"{seed} {kernel} {number}")
    try:
        KERNELS[kernel](case)
        case.assert_nothing_beside_was_written()
    except Exception as error:
        if verbose:
            traceback.print_exc()
        why = str(error).partition("\n")[0]
        print(f"{kernel} {number}: {type(error).__name__}: {why}", case.choices, sep="\n  ")
        command = f"python -m tests.fuzz --seed {seed} --only {kernel} --case {number}"
        print(f"  repeat: {command}", flush=True)
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="of all kernels together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KERNELS, metavar="KERNEL", help=", ".join(KERNELS))
    parser.add_argument("--case", type=int, help="one case of --only, with a traceback")
    parser.add_argument("--verbose", action="store_true", help="name each case before it runs")
    arguments = parser.parse_args()
    if arguments.case is not None:
        if arguments.only is None:
            parser.error("--case needs the kernel: add --only KERNEL")
        return 0 if run(arguments.only, arguments.case, arguments.seed, verbose=True) else 1
    torch.backends.cudnn.allow_tf32 = False
    names = [arguments.only] if arguments.only else list(KERNELS)
    failed, begun = dict.fromkeys(names, 0), time.monotonic()
    last = begun
    for done in range(arguments.cases):
        kernel, number = names[done % len(names)], done // len(names)
        if arguments.verbose:
            # A kernel that reads far outside ends the process: the last line says which.
            print(kernel, number, flush=True)
        failed[kernel] += not run(kernel, number, arguments.seed, arguments.verbose)
        if time.monotonic() - last > 15:
            last = time.monotonic()
            print(
                f"{done + 1} of {arguments.cases} cases, {sum(failed.values())} failed", flush=True
            )
    how = "interpreted" if DEVICE.type == "cpu" else f"on {torch.cuda.get_device_name()}"
    print(
        f"{arguments.cases} cases of {len(names)} kernels {how}, seed {arguments.seed}, "
        f"{time.monotonic() - begun:.0f} s: {sum(failed.values())} failed"
    )
    for kernel, count in failed.items():
        if count:
            print(f"  {kernel}: {count}")
    return 1 if sum(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
