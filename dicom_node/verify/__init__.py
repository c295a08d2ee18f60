"""The re-check of what the PACS returns."""
