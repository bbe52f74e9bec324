"""How a service of an image is told to another supervisor; a file here is a kind of supervisor."""
