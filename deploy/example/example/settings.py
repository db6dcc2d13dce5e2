"""What `startproject` writes, and the settings of dbtasks: "dbtasks" among the apps, and TASKS."""

import datetime
import os
from pathlib import Path

from .database_url import database_from_url

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = "not secret: this project only runs on your own machine"
DEBUG = os.environ.get("EXAMPLE_DEBUG", "1") == "1"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "dbtasks",
    "library",
]

# The queue lives in the project's own database, so this is all the infrastructure there is.
DATABASES = {
    "default": database_from_url(
        os.environ.get("EXAMPLE_DATABASE_URL") or f"sqlite:///{BASE_DIR / 'db.sqlite3'}"
    )
}

TASKS = {
    "default": {
        "BACKEND": "dbtasks.backend.DatabaseBackend",
        "QUEUES": ["default"],
        "OPTIONS": {
            # Finished tasks are deleted after a week; without this line they stay forever.
            "retain": datetime.timedelta(days=7),
            # A crontab such as "30 3 * * 1-5" would do as well as an interval.
            "periodic": {"library.tasks.measure_throughput": "2s"},
        },
    },
}

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "example.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
