"""detector room."""
