"""The index in Django's admin."""

from django.contrib import admin

from .models import Module, Throughput


@admin.register(Module)
class ModuleAdmin(admin.ModelAdmin):
    list_display = ["path", "lines", "functions", "classes", "indexed_at"]
    search_fields = ["path"]


@admin.register(Throughput)
class ThroughputAdmin(admin.ModelAdmin):
    list_display = ["measured_at", "modules", "per_second"]
