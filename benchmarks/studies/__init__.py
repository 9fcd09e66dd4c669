"""Studies: commands that make the tables of the docs. They are not in the wheel."""
