"""What CFSP costs, and its variants."""
