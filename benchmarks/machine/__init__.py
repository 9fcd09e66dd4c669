"""What a figure was measured on: environment, memory, energy, pinned cores, ceilings."""
