"""Column types that mean the same on every database and under every setting."""

from __future__ import annotations

import datetime
import json
import math
import re
from typing import Any

from django.conf import settings
from django.db import models
from django.utils import timezone

# Made once: json.dumps makes an encoder for each call that has options.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_SCALARS = frozenset({str, int, float, bool, type(None)})
# What stands for times that Python does not have; in every time zone they are times, too.
EARLIEST = datetime.datetime(1, 1, 2, tzinfo=datetime.UTC)
LATEST = datetime.datetime(9999, 12, 30, tzinfo=datetime.UTC)
_TOO_LATE = re.compile(r"infinity|\d{5}")


def dump_json(value: object) -> str:
    """JSON as the queue stores it: compact, pure ASCII, no NaN, no newline.

    ASCII, because then NUL and lone surrogates are escapes that every database can hold.
    Raises TypeError or ValueError for what is not JSON.
    """
    return _encode(value)


def is_plain_json(value: object) -> bool:
    """Whether `dump_json` loses nothing of it and needs no help: exact JSON types all the way.

    NaN and infinity are left to dump_json, which refuses them.
    """
    kind = type(value)
    if kind in _SCALARS:
        return True
    if isinstance(value, (list, tuple)) and kind in (list, tuple):
        return all(type(item) in _SCALARS or is_plain_json(item) for item in value)
    if isinstance(value, dict) and kind is dict:
        return all(type(key) is str for key in value) and is_plain_json(list(value.values()))
    return False


def load_json(text: Any) -> Any:
    """What a column holds as JSON. Raises ValueError for all that is none, nested too deeply too.

    Whoever can write to the table can write anything there.
    """
    try:
        return json.loads(text)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def explain_not_json(value: object, where: str) -> str | None:
    """Names the place in `value` that JSON cannot hold, or None if it can hold all of it."""
    match value:
        case None | bool() | int() | str():
            return None
        case float():
            if math.isfinite(value):
                return None
            return f"{where} is {value}, which JSON does not have"
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    return f"{where} has the key {key!r}; JSON objects have only strings as keys"
                if problem := explain_not_json(item, f"{where}[{key!r}]"):
                    return problem
            return None
        case list() | tuple():
            for index, item in enumerate(value):
                if problem := explain_not_json(item, f"{where}[{index}]"):
                    return problem
            return None
        case _:
            return f"{where} is a {type(value).__module__}.{type(value).__qualname__}"


class JSONText(models.TextField):
    """JSON in a text column.

    Not Django's JSONField: PostgreSQL's jsonb reorders keys and refuses NUL and lone surrogates,
    and a return value must never be the reason that a result cannot be stored.
    """

    _pyi_private_set_type: Any
    _pyi_private_get_type: Any

    def from_db_value(self, value: str | None, expression: object, connection: object) -> Any:
        try:
            return None if value is None else load_json(value)
        except ValueError:  # written by hand: show it, so that it can be found
            return value

    def get_prep_value(self, value: Any) -> Any:
        return None if value is None else dump_json(value)

    def value_to_string(self, obj: models.Model) -> str:
        return dump_json(self.value_from_object(obj))

    def to_python(self, value: Any) -> Any:
        return value


class UTCDateTimeField(models.DateTimeField):
    """An instant, stored in UTC whatever USE_TZ, TIME_ZONE or the database's TIME_ZONE say.

    The engines compare it with the database's UTC clock. Python sees what Django shows elsewhere:
    aware datetimes under USE_TZ, naive local ones otherwise.
    """

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        value = self.to_python(value)
        return None if value is None else utc_parameter(value, connection.vendor)

    def select_format(self, compiler: Any, sql: str, params: Any) -> tuple[str, Any]:
        read = in_range(sql, compiler.connection.vendor)
        return read, tuple(params) * (read.count(sql) if params else 1)

    def from_db_value(self, value: Any, expression: object, connection: Any) -> Any:
        return None if value is None else localized(nearest_utc(value, connection))


def as_utc(value: datetime.datetime) -> datetime.datetime:
    """The same instant, aware and in UTC; a naive value is in settings.TIME_ZONE."""
    if timezone.is_naive(value):
        value = timezone.make_aware(value, timezone.get_default_timezone())
    return value.astimezone(datetime.UTC)


def utc_parameter(value: datetime.datetime, vendor: str) -> Any:
    """`value` as a query parameter: aware for PostgreSQL, naive UTC text elsewhere."""
    value = as_utc(value)
    if vendor == "postgresql":
        return value
    return value.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def utc_value(value: Any, connection: Any) -> datetime.datetime:
    """An instant as the driver returned it (text, naive or aware), as an aware UTC datetime."""
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if connection.vendor == "postgresql":
        if timezone.is_naive(value):  # USE_TZ is off: the session's own time zone
            value = timezone.make_aware(value, connection.timezone or _session_zone(connection))
        return value.astimezone(datetime.UTC)  # type: ignore[no-any-return]
    return value.replace(tzinfo=datetime.UTC)  # type: ignore[no-any-return]


def nearest_utc(value: Any, connection: Any) -> datetime.datetime:
    """As utc_value; of what is no time of Python's (a row written by hand) what comes next to it.

    LATEST for infinity and far years, EARLIEST for all others.
    """
    try:
        return min(max(utc_value(value, connection), EARLIEST), LATEST)
    except (ValueError, TypeError, AttributeError, OverflowError):
        return LATEST if isinstance(value, str) and _TOO_LATE.match(value) else EARLIEST


def in_range(sql: str, vendor: str) -> str:
    """SQL for the same instant, or for the nearest that Python has: PostgreSQL has infinity.

    One such row would else hide all that are selected with it.
    """
    if vendor != "postgresql":
        return sql
    first, last = f"'{EARLIEST.isoformat()}'::timestamptz", f"'{LATEST.isoformat()}'::timestamptz"
    return f"CASE WHEN {sql} < {first} THEN {first} WHEN {sql} > {last} THEN {last} ELSE {sql} END"


def _session_zone(connection: Any) -> datetime.tzinfo:
    import zoneinfo

    return zoneinfo.ZoneInfo(connection.timezone_name)


def localized(value: datetime.datetime) -> datetime.datetime:
    """An aware UTC instant as the project sees datetimes."""
    if settings.USE_TZ:
        return value
    return timezone.make_naive(value, timezone.get_default_timezone())


class ExactCharField(models.CharField):
    """Text that is compared exactly: MySQL's default collations take "Email" for "email"."""

    def db_parameters(self, connection: Any) -> Any:
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql":
            parameters["collation"] = "utf8mb4_bin"
        return parameters


class PartialIndex(models.Index):
    """An index over the rows that `condition` names, and over all rows where MySQL has no such.

    There the leading columns are NULL for all other rows, which keeps them out of the range.
    """

    def create_sql(self, model: Any, schema_editor: Any, using: str = "", **kwargs: Any) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            return super().create_sql(model, schema_editor, using=using, **kwargs)
        whole = models.Index(fields=list(self.fields), name=self.name)
        return whole.create_sql(model, schema_editor, using=using, **kwargs)

    def check(self, model: Any, connection: Any) -> Any:
        # W037 warns that MySQL ignores the condition; here that is what is meant.
        found = super().check(model, connection)
        return [message for message in found if message.id != "models.W037"]

    def remove_sql(self, model: Any, schema_editor: Any, **kwargs: Any) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            return super().remove_sql(model, schema_editor, **kwargs)
        return models.Index(fields=list(self.fields), name=self.name).remove_sql(
            model, schema_editor, **kwargs
        )


class OnlyPartialIndex(PartialIndex):
    """A partial index that is left out where there are none: over all rows it would cost each."""

    @staticmethod
    def exists_on(connection: Any) -> bool:
        return bool(connection.features.supports_partial_indexes)
