"""A depot: images published once and pulled many times, under an index that speaks TUF."""
