"""The base of all our pages: rows to be read."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.paginator import Paginator
from django.http import HttpRequest
from django.utils.functional import cached_property

CAP = 10_000


class CappedPaginator(Paginator):
    """Counts up to CAP rows, so that a page costs the same however many there are."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[:CAP].count())


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows belong to the engines: edited behind their back, a claim's fence would not hold."""

    show_full_result_count = False
    paginator = CappedPaginator

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
