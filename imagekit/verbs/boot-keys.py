"""Make the keys by which firmware and TPMs believe your appliances (Secure Boot, sealed disks)."""

from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path

from imagekit import bootkeys, efivars, host, rsa
from imagekit.errors import Problem
from imagekit.usage import Verb


def run(asked: Namespace) -> int:
    """Print what each is for, and which of them to carry away."""
    if asked.revoke and not asked.enroll:
        raise Problem("--revoke writes a file for firmware, and nobody said where", "name a folder: --enroll OUT")
    return _enroll(asked.folder, asked.enroll, asked.revoke) if asked.enroll else _make(asked.folder, asked.name)


def _make(folder: Path, name: str) -> int:
    made = bootkeys.make(folder, name=name)
    for role, (beside, what, is_offline) in bootkeys.ROLES.items():
        place = "keep it OFFLINE: no build needs it" if is_offline else "builds need it (--boot-keys)"
        print(f"{folder / role}.key, {beside}  {what}; {place}")
    print(f"{folder / 'owner'}  {made.owner}, by which firmware tells whose keys these are")
    return 0


def _enroll(folder: Path, out: Path, revoked: list[Path]) -> int:
    """Into a folder that can be copied to a stick, or to /loader/keys of a machine's ESP."""
    bad = [rsa.certificate(path.read_bytes(), what=str(path)) for path in revoked]
    files = efivars.enrolment(bootkeys.BootKeys(folder), at=datetime.now(UTC), revoked=bad)
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with host.draft(out / name) as file:
            file.write(data)
    print(f"{out}: enrol db.auth, then KEK.auth, and PK.auth last, which turns Secure Boot on")
    if bad:
        print(f"{out / 'dbx.auth'} revokes {', '.join(each.name for each in bad)}")
    print(f"{out / 'noPK.auth'} turns it off again: keep it where PK.key is")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder that is made for them")
    verb.add_argument("--name", default="", help="whose they are, in the certificates that firmware shows")
    verb.add_argument("--enroll", type=Path, metavar="OUT", help="of keys that are there: write what firmware enrols")
    shown = "with --enroll: a certificate that firmware shall believe no more (repeatable)"
    verb.add_argument("--revoke", type=Path, metavar="CRT", action="append", default=[], help=shown)


VERB = Verb(run, define, ("boot-keys keys/boot --name Example", "boot-keys keys/boot --enroll stick"))
