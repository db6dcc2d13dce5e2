"""Operations for migrations of tables that are big and in use. See `operations`."""

from .operations import AddColumn, AddIndex, CreateTable
from .patience import Locked

__all__ = ["AddColumn", "AddIndex", "CreateTable", "Locked"]
