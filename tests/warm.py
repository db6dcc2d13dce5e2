"""What processes that race need, loaded once: they are forked from one that has imported this."""

import django

django.setup()

import tests.engines  # noqa: E402, F401
