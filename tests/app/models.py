"""What the tests' tasks write, and a journal of their executions."""

from django.db import models


class Note(models.Model):
    text = models.CharField(max_length=200)

    def __str__(self) -> str:
        return str(self.text)
