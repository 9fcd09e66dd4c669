"""What every room may use: errors, events, run options, small files, the base of recipe slices. It knows no model."""
