"""``make gpu``: everything that needs an NVIDIA GPU, as a list of steps that one command takes."""
