"""Serve a folder, such as a depot, over HTTP: read only, to this machine alone unless told otherwise."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import usage


def run(asked: Namespace) -> int:
    """Until it is interrupted."""
    from imagekit.depot import server

    log = (lambda line: print(line, flush=True)) if asked.verbose else (lambda _: None)
    running = server.Server(asked.folder, host=asked.address, port=asked.port, log=log)
    print(f"http://{asked.address}:{running.port}", flush=True)
    server.serve(running)
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("folder", type=Path, metavar="DIR", help="hidden files and links in it are served to nobody")
    verb.add_argument(
        "--address", default="127.0.0.1", help="to listen on; 0.0.0.0 for every network (default: loopback)"
    )
    verb.add_argument("--port", type=int, default=8080, help="0 takes any that is free (default: 8080)")
    verb.add_argument("--verbose", action="store_true", help="a line for each answer")


VERB = usage.Verb(run, define, ("serve /srv/depot", "serve /srv/depot --address 0.0.0.0 --port 80"))
