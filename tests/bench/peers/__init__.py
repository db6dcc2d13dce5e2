"""Other products; this package imports nothing, for it is imported in their environments too."""
