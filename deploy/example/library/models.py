"""What the tasks find out."""

from django.db import models


class Module(models.Model):
    """One Python module as it was when a task last read it."""

    path = models.CharField(max_length=255, unique=True)
    functions = models.PositiveIntegerField(help_text="Methods and nested functions count, too.")
    classes = models.PositiveIntegerField()
    lines = models.PositiveIntegerField()
    sha256 = models.CharField(max_length=64)
    indexed_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.path


class Throughput(models.Model):
    """How fast modules were indexed, as the periodic task saw it."""

    measured_at = models.DateTimeField()
    modules = models.PositiveIntegerField(help_text="Indexed in the time that was looked at.")
    per_second = models.FloatField()

    class Meta:
        ordering = ["measured_at"]

    def __str__(self) -> str:
        return f"{self.per_second:.0f} modules/s"
