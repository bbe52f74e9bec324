"""Make the keys by which firmware and TPMs believe your appliances (Secure Boot, sealed disks)."""

from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path

from imagekit import bootkeys, efivars, host
from imagekit.usage import Verb


def run(asked: Namespace) -> int:
    """Print what each is for, and which of them to carry away."""
    return _enroll(asked.folder, asked.enroll) if asked.enroll else _make(asked.folder, asked.name)


def _make(folder: Path, name: str) -> int:
    made = bootkeys.make(folder, name=name)
    for role, (beside, what, is_offline) in bootkeys.ROLES.items():
        place = "keep it OFFLINE: no build needs it" if is_offline else "builds need it (--boot-keys)"
        print(f"{folder / role}.key, {beside}  {what}; {place}")
    print(f"{folder / 'owner'}  {made.owner}, by which firmware tells whose keys these are")
    return 0


def _enroll(folder: Path, out: Path) -> int:
    """Into a folder that can be copied to a stick, or to /loader/keys of a machine's ESP."""
    files = efivars.enrolment(bootkeys.BootKeys(folder), at=datetime.now(UTC))
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with host.draft(out / name) as file:
            file.write(data)
    print(f"{out}: enrol db.auth, then KEK.auth, and PK.auth last, which turns Secure Boot on")
    print(f"{out / 'noPK.auth'} turns it off again: keep it where PK.key is")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder that is made for them")
    verb.add_argument("--name", default="", help="whose they are, in the certificates that firmware shows")
    verb.add_argument("--enroll", type=Path, metavar="OUT", help="of keys that are there: write what firmware enrols")


VERB = Verb(run, define, ("boot-keys keys/boot --name Example", "boot-keys keys/boot --enroll stick"))
