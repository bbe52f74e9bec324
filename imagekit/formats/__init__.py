"""How a Tree is written as an Artifact; one file per format."""
