"""What a benchmark found: its document, its tables, whether it meets a target."""
