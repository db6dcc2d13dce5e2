"""What the templates of our admin pages need."""

from __future__ import annotations

import datetime
import math
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..admin.lines import short_path
from ..admin.pages import Pages
from ..admin.query import word_of
from ..admin.words import aware, duration, number, size

if TYPE_CHECKING:
    from ..admin.picture import Group
    from ..models import Worker

register = template.Library()


@register.simple_tag
def address(pages: Pages, name: str, *args: Any, **query: Any) -> str:
    """{% address pages "task" id %}: an address of `Pages`; the tag escapes it."""
    return str(getattr(pages, name)(*args, **query))


@register.simple_tag
def state(name: str) -> SafeString:
    """A state as a coloured word."""
    return format_html('<span class="dbtasks-state dbtasks-{}">{}</span>', name, word_of(name))


@register.filter
def grouped(value: float) -> str:
    return number(int(value)) if math.isfinite(value) else "—"


@register.filter
def iso(moment: datetime.datetime | None) -> str:
    return "" if moment is None else aware(moment).isoformat(timespec="seconds")


@register.filter
def exact(moment: datetime.datetime) -> str:
    """In the zone of the project, to the millisecond."""
    local = timezone.localtime(aware(moment))
    return f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03d} {local:%Z}"


@register.filter
def to_the_minute(moment: datetime.datetime) -> str:
    """In the zone of the project."""
    return f"{timezone.localtime(aware(moment)):%Y-%m-%d %H:%M %Z}"


@register.filter
def born(id: uuid.UUID | None) -> str:
    """When a UUIDv7 was made."""
    if id is None:
        return ""
    moment = datetime.datetime.fromtimestamp((id.int >> 80) / 1000, datetime.UTC)
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S %Z}"


@register.filter
def quoted(value: object) -> str:
    """A primary key for an address of the admin."""
    from django.contrib.admin.utils import quote

    return str(quote(str(value)))


@register.filter
def lasting(seconds: float | None) -> str:
    return duration(seconds)


@register.filter
def memory(amount: int | None) -> str:
    return size(amount)


@register.filter
def cpu(worker: Worker) -> str:
    """What share of one processor it has used since it started."""
    if worker.cpu_seconds is None or not worker.up_seconds:
        return "—"
    return f"{100 * worker.cpu_seconds / worker.up_seconds:.0f} %"


@register.filter
def capped(value: int, cap: int) -> str:
    return number(value, cap)


@register.filter
def last_part(path: str) -> str:
    return short_path(path)


@register.simple_tag
def retry_group(pages: Pages, group: Group) -> str:
    """The page that asks whether all failed tasks of that path and exception shall run again."""
    query = urlencode({"state": "failed", "task": group.task_path, "error": group.exception})
    return pages.operate("retry", all=1, query=query)
