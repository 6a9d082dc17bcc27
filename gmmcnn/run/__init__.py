"""One run folder: its stages, records, tables and page."""
