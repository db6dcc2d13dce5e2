"""`make test-dist`: what is in the wheel and the sdist, and whether the wheel works by itself."""
