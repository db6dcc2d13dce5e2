"""Work and schedules of other products. See `rows` and `schedules`."""
