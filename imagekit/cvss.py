"""The base score of a CVSS v3 vector, as the specification computes it.

https://www.first.org/cvss/v3.1/specification-document, sections 7.1 (base metrics), 7.4 (weights) and appendix A
(rounding in integers); version 3.0 differs by how it rounds alone.
"""

import math
from collections.abc import Mapping

from imagekit.errors import Problem

LONGEST = 200  # characters of a vector
LEVELS = ((9.0, "critical"), (7.0, "high"), (4.0, "medium"), (0.1, "low"), (0.0, "none"))  # section 5
WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "AV": {"N": 0.85, "A": 0.62, "L": 0.55, "P": 0.2},
    "AC": {"L": 0.77, "H": 0.44},
    "PR": {"N": 0.85, "L": 0.62, "H": 0.27},
    "UI": {"N": 0.85, "R": 0.62},
    "S": {"U": 0, "C": 1},
    "C": {"H": 0.56, "L": 0.22, "N": 0.0},
    "I": {"H": 0.56, "L": 0.22, "N": 0.0},
    "A": {"H": 0.56, "L": 0.22, "N": 0.0},
}
CHANGED = {"N": 0.85, "L": 0.68, "H": 0.5}  # privileges required where the scope changes


def score(vector: str) -> float:
    """From 0.0 to 10.0; temporal and environmental metrics are allowed and not counted."""
    metrics = _parsed(vector)
    weights = {name: of[metrics[name]] for name, of in WEIGHTS.items()}
    is_changed = metrics["S"] == "C"
    if is_changed:
        weights["PR"] = CHANGED[metrics["PR"]]
    lost = 1 - (1 - weights["C"]) * (1 - weights["I"]) * (1 - weights["A"])
    impact = 7.52 * (lost - 0.029) - 3.25 * (lost - 0.02) ** 15 if is_changed else 6.42 * lost
    if impact <= 0:
        return 0.0
    reach = 8.22 * weights["AV"] * weights["AC"] * weights["PR"] * weights["UI"]
    total = min((impact + reach) * (1.08 if is_changed else 1), 10)
    return _ceiling(total) if vector.startswith("CVSS:3.0/") else _roundup(total)


def level(score: float) -> str:
    """The word for a score."""
    return next(word for least, word in LEVELS if score >= least)


def _parsed(vector: str) -> dict[str, str]:
    start, *pairs = vector[: LONGEST + 1].split("/")
    metrics: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        if name in metrics:
            raise Problem(f"{ascii(vector)[:90]} gives {name!a} twice")
        metrics[name] = value
    is_whole = all(metrics.get(name) in of for name, of in WEIGHTS.items())
    if start not in ("CVSS:3.0", "CVSS:3.1") or len(vector) > LONGEST or not is_whole:
        raise Problem(
            f"{ascii(vector)[:90]} is no vector of CVSS 3", "as in CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"
        )
    return metrics


def _roundup(value: float) -> float:
    """Appendix A of 3.1: in integers, since 4.02 may be 4.0200000000000005."""
    whole = round(value * 100_000)
    return whole / 100_000 if whole % 10_000 == 0 else (whole // 10_000 + 1) / 10


def _ceiling(value: float) -> float:
    return math.ceil(value * 10) / 10
