"""The admin, where the tasks and what they made can be looked at."""

from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
