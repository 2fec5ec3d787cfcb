"""sink room."""
