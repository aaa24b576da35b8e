"""Commands in processes that are forked from one which has imported PyTorch: each starts at once.

``forked_commands`` starts that process and makes ``hypermask`` and ``python`` for a shell's PATH.
They pass words, folder and streams on, wait, and end with the status; killed, they take the fork
along.
"""

from __future__ import annotations

import json
import os
import pkgutil
import runpy
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    words = json.dumps([{name!r}, os.getcwd(), sys.argv[1:]]).encode()
    socket.send_fds(server, [len(words).to_bytes(4, "big") + words], [0, 1, 2])
    sys.exit(int(server.recv(8) or b"1"))
"""


@contextmanager
def forked_commands() -> Iterator[Path]:
    """Give a folder with ``hypermask`` and ``python``, for PATH; both are ended afterwards.

    ``torchrun`` is there too, and starts processes that are forked from none.
    """
    folder = Path(tempfile.mkdtemp(prefix="commands-"))
    address = str(folder / "socket")
    for name in ("hypermask", "python"):
        script = folder / name
        script.write_text(_CLIENT.format(python=sys.executable, address=address, name=name))
        script.chmod(0o755)
    launcher = folder / "torchrun"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    launcher.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", __name__, address],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield folder
        finally:
            server.kill()
            shutil.rmtree(folder)


def _message(client: socket.socket) -> tuple[list[object], list[int]]:
    data, streams, _, _ = socket.recv_fds(client, 65536, 3)
    length = int.from_bytes(data[:4], "big")
    while len(data) < 4 + length:
        data += client.recv(65536)
    return json.loads(data[4:]), streams


def _run_python(words: list[str]) -> None:
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).parent.resolve()))
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _status(name: str, words: list[str]) -> int:
    from hypermask_fast.cli import main

    try:
        if name == "hypermask":
            return main(words)
        _run_python(words)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _command(client: socket.socket) -> None:
    """Run what the client asks for in a fork of this fork; a client that is gone ends it."""
    (name, folder, words), streams = _message(client)
    child = os.fork()
    if not child:
        client.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        # A stream remembers whether its file can seek.
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        status = _status(name, words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, client], [], [])[0]:
        os.kill(child, 9)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        client.send(str(status if status >= 0 else 128 - status).encode())


# They need what may not be installed, or a GPU's compiler.
_OPTIONAL = (
    "hypermask_fast.kernels",
    "hypermask_fast.integrations",
    "hypermask_fast.studies.sweep_optuna",
)


def _import_all() -> None:
    """Import what commands import, so that no fork does it."""
    import torch._dynamo
    import torch.export  # noqa: F401

    import hypermask_fast
    from hypermask_fast.vision import import_torchvision

    import_torchvision()
    for room in pkgutil.walk_packages(hypermask_fast.__path__, "hypermask_fast."):
        if not room.name.startswith(_OPTIONAL):
            __import__(room.name)


def main(address: str) -> None:
    """Listen at ``address``; ends with the process that started it."""
    _import_all()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            client, _ = listener.accept()
            if not os.fork():
                listener.close()
                _command(client)
                os._exit(0)
            client.close()
            while _reaped():
                pass


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


if __name__ == "__main__":
    main(sys.argv[1])
