"""`make test-free-threaded`: whether the GIL stays off, and what Runner's threads gain by it."""
