"""What tasks write, and what triggers note about the queue's rows."""

from django.db import models


class Entry(models.Model):
    """Written by a task in a transaction: it exists if and only if the task was successful."""

    token = models.CharField(max_length=40, primary_key=True)
    nonce = models.CharField(max_length=60)

    def __str__(self) -> str:
        return self.token


class Change(models.Model):
    """One UPDATE or DELETE of a ScheduledTask, noted by a trigger in the same transaction."""

    task_id = models.CharField(max_length=40, db_index=True)
    at = models.FloatField(help_text="Seconds since 1970, the database's clock.")
    old_status = models.CharField(max_length=12)
    new_status = models.CharField(max_length=12)
    old_worker = models.CharField(max_length=160, null=True)  # noqa: DJ001  as the column it copies
    new_worker = models.CharField(max_length=160, null=True)  # noqa: DJ001
    attempt = models.IntegerField()
    failures = models.IntegerField()
    crashes = models.IntegerField()

    def __str__(self) -> str:
        return f"{self.old_status} > {self.new_status}"
