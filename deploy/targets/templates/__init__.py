"""Templates of what the targets write; ``deploy.targets.text`` renders them."""
