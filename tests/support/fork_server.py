"""The process that forks for `forks`, as a script that is told its socket: it imports PyTorch and nothing of ours."""

import json
import os
import runpy
import socket
import sys

import torch


def serve(connection):
    """Fork and tell the pids, or wait and tell how one ended; in a fork, return what it is asked to be."""
    assert os.listdir("/proc/self/task") == [str(os.getpid())]  # forks have one thread
    connection.send(b"ready")
    while True:
        asked, files, *_ = socket.recv_fds(connection, 1 << 20, 2)
        if not asked:
            sys.exit()
        if not files:
            answer = os.waitstatus_to_exitcode(os.waitpid(json.loads(asked), 0)[1])
        elif not (answer := os.fork()):
            connection.close()
            os.dup2(files[0], 1), os.dup2(files[0], 2), os.close(files[0])
            return json.loads(asked), files[1:]
        else:
            for file in files:
                os.close(file)
        connection.send(json.dumps(answer).encode())


def become(environment, path):
    """What Python and PyTorch have read of these when they were started is set now."""
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.path[1:1] = path


def main():
    """Serve; and then a fork runs what it was asked to, and ends as that does."""
    asked, sockets = serve(socket.socket(fileno=int(sys.argv[1])))
    become(asked["environment"], asked["path"])
    if sockets:  # it is to serve, with the package
        import torch._dynamo  # noqa: F401 - which the first optimizer would import

        import pyromancy  # noqa: F401

        asked, _ = serve(socket.socket(fileno=sockets[0]))
    sys.argv = asked["arguments"]
    return sys.argv[0]


if __name__ == "__main__":
    what = main()
    if what == "-c":
        sys.path[0] = ""
        exec(compile(sys.argv.pop(1), "<string>", "exec"), {"__name__": "__main__"})
    elif what == "-m":
        del sys.argv[0]
        sys.path[0] = os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(what)
        runpy.run_path(what, run_name="__main__")
