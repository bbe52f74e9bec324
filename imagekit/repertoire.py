"""Repertoire: what the formats give and ask for, remembered, since to load each of them takes longer than to compose.

A format whose facts are known is loaded when it writes, and no sooner.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from imagekit import plugs
from imagekit.artifact import Format
from imagekit.store import Store

FACTS = tuple(field.name for field in fields(Format) if field.name != "write")
_KNOWN: dict[str, Mapping[str, Any]] = {}


def recall(store: Store, *, own: str) -> None:
    """Take the facts of this tree's formats from a note in the store, which is made where there is none.

    own: a digest of this imagekit, each of which has its own note.
    """
    note = store.recall("formats", own)
    if note is None:
        loaded = {name: plugs.load("formats", name) for name in plugs.own("formats")}
        found = {name: {fact: getattr(format, fact) for fact in FACTS} for name, format in loaded.items()}
        note = json.dumps(found, sort_keys=True).encode()
        store.remember("formats", own, note)
    _KNOWN.update(json.loads(note))


def format(name: str) -> Format:
    """A format by its name: as a value of what is known of it, or loaded. An unknown name lists the known ones."""
    if name not in _KNOWN:
        loaded: Format = plugs.load("formats", name)
        return loaded
    facts: dict[str, Any] = {
        fact: tuple(value) if isinstance(value, list) else value for fact, value in _KNOWN[name].items()
    }
    return Format(partial(_write, name), **facts)


def _write(name: str, *given: Any, **named: Any) -> Any:
    return plugs.load("formats", name).write(*given, **named)
