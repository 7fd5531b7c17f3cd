"""Python in processes of their own that have imported PyTorch already: forks of one that has done nothing else.

To import it takes seconds, by far most of what a small script takes. What depends on how Python starts or on the import
of PyTorch itself has to be started by `processes`. `fork_server.py` is the process that forks.
"""

import atexit
import functools
import json
import os
import signal
import socket
import threading

import processes

SERVER = processes.HELPERS / "fork_server.py"


class Forked:
    """As much of a `subprocess.Popen` as `processes.finish` and `processes.end` ask for."""

    def __init__(self, server, pid, stdout):
        self.server, self.pid, self.stdout, self.returncode = server, pid, stdout, None

    def kill(self):
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        if self.returncode is None:
            self.server.send(json.dumps(self.pid).encode())
            self.returncode = json.loads(self.server.recv(100))
        return self.returncode

    def communicate(self, timeout):
        """Who takes longer is killed."""
        timer = threading.Timer(timeout, self.kill)
        timer.start()
        with self.stdout:
            output = self.stdout.read()
        self.wait()
        timer.cancel()
        return output, None


@functools.cache
def _with_torch():
    """What a process of tests asks for forks that have imported PyTorch alone; it ends with that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:  # OpenBLAS starts threads when it is imported
        started = processes.start(SERVER, theirs.fileno(), pass_fds=[theirs.fileno()], OPENBLAS_NUM_THREADS="1")
    assert ours.recv(100) == b"ready", processes.finish(started)
    atexit.register(started.communicate)
    atexit.register(ours.close)
    return ours


@functools.cache
def _with_package(**environment):
    """The same of forks that have imported this package too, in an environment: a fork of the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        started = _fork(_with_torch(), [SERVER], environment, theirs.fileno())
    assert ours.recv(100) == b"ready", processes.finish(started)
    atexit.register(started.communicate, 60)
    atexit.register(ours.close)
    return ours


def _fork(server, arguments, environment, *files, path=()):
    read, write = os.pipe()
    asked = {"arguments": [*map(str, arguments)], "environment": environment, "path": [*map(str, path)]}
    socket.send_fds(server, [json.dumps(asked).encode()], [write, *files])
    os.close(write)
    return Forked(server, json.loads(server.recv(100)), open(read))


def start(*arguments, package=True, path=(), **environment):
    """Start what Python would with these arguments: a script's path, "-c" and code or "-m" and a module, and its own.

    Without `package` it has to import this package itself, in its environment. `path` goes before everything else.
    """
    if package and path:
        raise ValueError("path is of what has not been imported, got one for a process with the package")
    server = _with_package(**environment) if package else _with_torch()
    return _fork(server, arguments, environment, path=path)


def python(*arguments, expect=0, **options):
    """Run it and return what it printed."""
    return processes.finish(start(*arguments, **options), expect)
