"""Make a depot and care for it: its keys, their rotation, and the index's signatures before they expire."""

from argparse import ArgumentParser, Namespace
from hashlib import sha256
from pathlib import Path

from imagekit import key as keys
from imagekit import site, usage
from imagekit.errors import Problem
from imagekit.key import Key

ROOT_FILE = "root.json"


def run(asked: Namespace) -> int:
    """What was asked for."""
    return int(ACTIONS[asked.action](asked))


def _init(asked: Namespace) -> int:
    from imagekit.depot import index, roles, trust

    place, folder = site.at(asked.place), _folder(asked)
    if index.is_at(place):
        raise Problem(f"{place.place} is a depot already", "`imagekit depot keys` shows who keeps it")
    made = {role: _new(folder, role, asked.roots if role == "root" else 1) for role in roles.ROLES}
    root = index.create(place, made, thresholds={"root": asked.threshold}, days={})
    trust.adopt(place, root)
    (folder / ROOT_FILE).write_bytes(root)
    print(f"{place.place}: keys in {folder}; take root-*.key offline")
    print(f"readers trust it by {folder / ROOT_FILE}, or by sha256:{sha256(root).hexdigest()}")
    return 0


def _keys(asked: Namespace) -> int:
    from imagekit.depot import index, roles, trust

    place = site.at(asked.place)
    held = index.load(place, trust.trusted(place), least=trust.newest(place))
    for name in roles.ROLES:
        role, metadata = held.root.signed.roles[name], getattr(held, name)
        print(f"{name} {metadata.signed.version}, until {metadata.signed.expires:%Y-%m-%d}: "
              f"{role.threshold} of {', '.join(one[:16] for one in role.keyids)}")  # fmt: skip
    return 0


def _refresh(asked: Namespace) -> int:
    from imagekit.depot import index, roles, trust

    place = site.at(asked.place)
    with place.lock():
        held = index.load(place, trust.trusted(place), least=trust.newest(place))
        renewed = index.renew(place, held, keys=roles.read_keys(asked.keys), days={})
    trust.refresh(place)
    print(f"signed anew: {', '.join(renewed)}")
    return 0


def _rotate(asked: Namespace) -> int:
    from imagekit.depot import index, roles, trust

    place, folder = site.at(asked.place), _folder(asked)
    wanted = asked.role or list(index.REST)
    with place.lock():
        held = index.load(place, trust.trusted(place), least=trust.newest(place))
        old = roles.read_keys(asked.keys)
        new = {role: _new(folder, role, len(held.root.signed.roles[role].keyids)) for role in wanted}
        stolen = {key_id for role in wanted if asked.stolen for key_id in held.root.signed.roles[role].keyids}
        at_hand = [one for one in old if roles.identifier(one) not in stolen]
        everything = [*at_hand, *(one for some in new.values() for one in some)]
        index.rotate(place, held, new, thresholds={}, keys=everything, days={})
    trust.refresh(place)
    print(f"new keys in {folder}: {', '.join(wanted)}; the old ones count no more")
    return 0


def _folder(asked: Namespace) -> Path:
    folder: Path = asked.keys[0]
    if folder.exists() and not folder.is_dir():
        raise Problem(f"{folder} is no folder", "new keys are written to the first that --keys names")
    return folder


def _new(folder: Path, role: str, count: int) -> list[Key]:
    """New keys under names that no key has yet."""
    found = []
    free = (path for n in range(1, 10_000) if not (path := folder / f"{role}-{n}.key").exists())
    for _ in range(count):
        made = keys.new(f"depot {role}")
        keys.save(made, next(free))
        found.append(made)
    return found


ACTIONS = {"init": _init, "keys": _keys, "refresh": _refresh, "rotate": _rotate}


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("action", choices=tuple(ACTIONS), help="make one; show its keys; sign its index anew; new keys")
    verb.add_argument("place", metavar="PLACE", help="the depot's directory, here or ssh://HOST/PATH")
    verb.add_argument("--keys", nargs="+", type=Path, default=[Path("depot-keys")], metavar="FILE",
                      help="secret keys, or folders of them (default: depot-keys)")  # fmt: skip
    verb.add_argument("--roots", type=int, default=1, metavar="N", help="init: how many root keys (default: 1)")
    verb.add_argument(
        "--threshold", type=int, default=1, metavar="N", help="init: root keys that must sign (default: 1)"
    )
    verb.add_argument("--role", action="append", choices=("root", "targets", "snapshot", "timestamp"),
                      help="rotate: the role (repeatable; default: all but root)")  # fmt: skip
    verb.add_argument("--stolen", action="store_true", help="rotate: sign nothing with the old keys any more")


VERB = usage.Verb(
    run,
    define,
    (
        "depot init /srv/depot --keys depot-keys --roots 3 --threshold 2",
        "depot refresh /srv/depot --keys depot-keys",
        "depot rotate /srv/depot --role timestamp --stolen",
    ),
)
