"""A budget into how many units each block keeps."""
