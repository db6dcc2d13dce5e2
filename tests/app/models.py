"""What the tests' tasks write, and a journal of their executions."""

from django.db import models

from dbtasks.fields import UTCDateTimeField


class Note(models.Model):
    text = models.CharField(max_length=200)

    def __str__(self) -> str:
        return str(self.text)


class Clock(models.Model):
    """The database's clock, where a test sets it."""

    at = UTCDateTimeField()

    def __str__(self) -> str:
        return str(self.at)
