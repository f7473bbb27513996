"""Two connected processes that are forked from this one: no interpreter starts and imports for each of them."""

import os
import socket
import sys
import traceback


def in_two_processes(work):
    """Runs `work(rank)` in two processes with the variables of a launcher, and returns whether both succeeded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(2):
        if child := os.fork():
            children.append(child)
            continue
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        status = 1
        try:
            work(rank)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return not any(statuses)
