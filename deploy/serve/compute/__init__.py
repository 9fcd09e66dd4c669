"""What the computing process is made of: texts that grow, and how their tokens are chosen."""
