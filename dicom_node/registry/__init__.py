"""What was marked, searchable: the registry."""
