"""Work for the processor alone."""

from django.tasks import task


@task
def count(steps: int) -> int:
    total = 0
    for number in range(steps):
        total += number & 7
    return total
