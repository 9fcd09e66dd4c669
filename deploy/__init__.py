"""An artefact into a folder that a server or a user opens."""
