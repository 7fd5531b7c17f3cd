"""Python in processes of their own that have imported PyTorch already: forks of one that has done nothing else.

To import it takes seconds, by far most of what a small script takes. What depends on how Python starts or on the import
itself has to be started by `processes`; every environment has a process of its own that forks. Run as a script, this
is that process.
"""

import atexit
import functools
import json
import os
import signal
import socket
import sys
import threading

import processes


class Forked:
    """As much of a `subprocess.Popen` as `processes.finish` asks for."""

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
def _server(**environment):
    """What a process of tests asks for forks in an environment; it ends with that."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment["OPENBLAS_NUM_THREADS"] = "1"  # as it starts threads when it is imported
    with theirs:
        started = processes.start(__file__, theirs.fileno(), pass_fds=[theirs.fileno()], **environment)
    assert ours.recv(100) == b"ready", processes.finish(started)
    atexit.register(started.communicate)
    atexit.register(ours.close)
    return ours


def start(*arguments, **environment):
    """Start what Python would with these arguments: a script's path and its arguments, or "-c" and code."""
    server = _server(**environment)
    read, write = os.pipe()
    socket.send_fds(server, [json.dumps([*map(str, arguments)]).encode()], [write])
    os.close(write)
    return Forked(server, json.loads(server.recv(100)), open(read))


def python(*arguments, **environment):
    """Run it and return what it printed."""
    return processes.finish(start(*arguments, **environment))


def serve(connection):
    """Fork and tell the pids, or wait and tell how one ended; in a fork, return what it is to run."""
    connection.send(b"ready")
    while True:
        asked, files, *_ = socket.recv_fds(connection, 1 << 20, 1)
        if not asked:
            return None
        if not files:
            answer = os.waitstatus_to_exitcode(os.waitpid(json.loads(asked), 0)[1])
        elif not (answer := os.fork()):
            connection.close()
            os.dup2(files[0], 1), os.dup2(files[0], 2), os.close(files[0])
            return json.loads(asked)
        else:
            os.close(files[0])
        connection.send(json.dumps(answer).encode())


if __name__ == "__main__":
    import runpy

    import torch._dynamo  # noqa: F401 - which the first optimizer would import

    import pyromancy  # noqa: F401

    assert os.listdir("/proc/self/task") == [str(os.getpid())]  # forks have one thread
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:  # and then this program ends as that one does
        sys.argv = arguments
        if arguments[0] == "-c":
            exec(compile(arguments.pop(1), "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.path[0] = os.path.dirname(arguments[0])
            runpy.run_path(arguments[0], run_name="__main__")
