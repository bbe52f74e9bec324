"""What a definition may say of its protection, and what is refused before anything is built."""

import pytest

from imagekit import Layout, Problem, Seal, SecureBoot, Verity


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Verity(root=False), "protects nothing"),
        (lambda: Verity(corrupted="ignore"), "'ignore'"),
        (lambda: SecureBoot(key="../db"), "no name"),
        (lambda: Seal(disk=""), "no name"),
        (lambda: Seal(policy="none"), "'none'"),
        (lambda: Seal(recovery="mail"), "'mail'"),
        (lambda: Seal(pcrs=()), "no tuple of PCRs"),
        (lambda: Seal(pcrs=[7, 11]), "no tuple of PCRs"),
        (lambda: Seal(pcrs=(11, 11)), "each once"),
        (lambda: Seal(pcrs=(11, 16)), "16 is no PCR"),
        (lambda: Seal(pcrs=(7,)), "signs PCR 11"),
        (lambda: Seal(generation=-1), "no number"),
        (lambda: Layout(seal=True), "seal=True is no Seal"),
        (lambda: Layout(root="ext4", verity=Verity()), "read-only root"),
        (lambda: Layout(root="erofs", changes="disk", verity=Verity()), "nobody checked"),
        (lambda: Layout(root="erofs", seal=Seal()), "nobody checks"),
        (lambda: Layout(slots=3), "neither 1 nor 2"),
        (lambda: Layout(root="erofs", slots=2), "by its hashes"),
    ],
)
def test_what_cannot_protect_is_refused(make, words):
    with pytest.raises(Problem) as told:
        make()
    assert words in str(told.value)


def test_what_protects_is_taken():
    layout = Layout(root="erofs", verity=Verity(), secure_boot=SecureBoot(), seal=Seal(pcrs=(4, 7), policy="exact"))
    assert layout.seal
    assert layout.seal.mount == "/data"
