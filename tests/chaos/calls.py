"""What a producer knows of one call of enqueue()."""

from dataclasses import dataclass
from enum import Enum


class Fate(Enum):
    COMMITTED = "committed"
    DOUBTFUL = "committed or not: enqueue() raised"
    ROLLED_BACK = "rolled back"


@dataclass
class Call:
    token: str
    kind: str
    fate: Fate = Fate.DOUBTFUL
