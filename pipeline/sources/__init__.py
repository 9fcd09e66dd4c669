"""Named models and texts, turned into folders and files."""
