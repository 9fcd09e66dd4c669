"""Artefact folders: whole or not there, summed, named by the hash of all that they depend on."""
