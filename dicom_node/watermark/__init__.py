"""The two watermarks, on arrays and bytes only."""
