"""`path("dbtasks/", include("dbtasks.urls"))` in a project's urls.py serves these."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "dbtasks"

urlpatterns = [
    path("healthz", views.healthz, name="healthz"),
    path("metrics", views.metrics, name="metrics"),
]
