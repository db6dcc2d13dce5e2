"""`make soak`: whether a node stays as small as it was, over many tasks and deaths."""
