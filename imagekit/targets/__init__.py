"""Where an Artifact comes alive as a Guest; one file per machine."""
