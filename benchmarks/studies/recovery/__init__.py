"""What recovery reaches, how fast it is, and which settings it was found with."""
