"""The table of model types: every stage and exporter on a tiny model of each."""
